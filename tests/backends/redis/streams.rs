//! Streams and resets by prefix: order, parts, other programs' keys, and records that go meanwhile.

use futures_util::TryStreamExt;
use gateway_storage::list::ListOptions;

use super::*;

/// Keys that a pattern of SCAN would confuse.
const NAMES: [&str; 20] = [
    "*", "**", "*x", "?", "?x", "[", "[a]", "[a]x", "[^a]", "]", "\\", "\\*", "\\x", "^", "-", "a", "a-c",
    "ax", "b", "é/ü",
];

fn named(prefix: &str, after: Option<&str>) -> Vec<Key> {
    let mut keys: Vec<Key> = NAMES.map(key).into();
    keys.retain(|key| key.as_str().starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
    keys.sort();
    keys
}

#[tokio::test]
async fn a_prefix_of_keys_is_not_a_pattern() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    // Beside the store's keys: other prefixes, other kinds, longer words, and names that are no keys.
    for name in ["xcli2api:cred:a", "gcli2api:credit:a", "gcli2api:cred", "cred:a", "gcli2api:cache:a", "a"] {
        raw.words(&format!("SET {name} foreign"));
        raw.words(&format!("SET {} foreign", name.replace("cred", "usage")));
    }
    raw.ask(&[b"SET", b"gcli2api:cred:not\na key", b"{}"]);
    raw.ask(&[b"HSET", b"gcli2api:config", b"not\na key", b"1"]);
    raw.ask(&[b"HSET", b"gcli2api:usage:not\na key", b"n", b"1"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let credentials = NAMES.map(|name| (key(name), Credential::try_from(json!({ "id": name })).unwrap()));
    assert!(storage.set_credentials(&credentials).await?.is_complete());
    assert!(storage.set_configs(NAMES.map(|name| (name, json!(name)))).await?.is_complete());
    assert!(storage.increment_many(&NAMES.map(|name| (name, name, 1))).await?.is_complete());

    for prefix in NAMES.into_iter().chain(["[a", "z", "a\0", "é", "\\*\\"]) {
        for after in NAMES.into_iter().map(Some).chain([None]) {
            let mut options = ListOptions::default().with_prefix(prefix);
            options.after = after.map(key);
            let wanted = named(prefix, after);
            let found: Vec<_> = storage.stream_credentials(options.clone()).try_collect().await?;
            assert!(found.iter().map(|(id, _)| id).eq(&wanted), "{prefix:?} {after:?}");
            assert!(found.iter().all(|(id, value)| value.fields()["id"] == id.as_str()));
            let found: Vec<_> = storage.stream_configs(options.clone()).try_collect().await?;
            assert!(found.iter().map(|(key, _)| key).eq(&wanted), "{prefix:?} {after:?}");
            assert!(found.iter().all(|(key, value)| value.value() == key.as_str()));
            let found: Vec<_> = storage.stream_usage(options).try_collect().await?;
            assert!(found.iter().map(|(key, _)| key).eq(&wanted), "{prefix:?} {after:?}");
            assert!(found.iter().all(|(key, record)| record.get(key.as_str()) == Some(1)));
        }
        let exported: Vec<Record> = storage.export_prefix(prefix).try_collect().await?;
        let wanted = named(prefix, None);
        assert!(exported.iter().map(Record::key).eq(wanted.iter().chain(&wanted).chain(&wanted)));
    }
    // Without a prefix the names that are no keys are errors, as in a list.
    let all = ListOptions::default;
    for error in [
        storage.stream_credentials(all()).try_collect::<Vec<_>>().await.unwrap_err(),
        storage.stream_configs(all()).try_collect::<Vec<_>>().await.unwrap_err(),
        storage.stream_usage(all()).try_collect::<Vec<_>>().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }

    let mut left: Vec<&str> = NAMES.into();
    for prefix in ["?", "[a", "\\", "*", "-", "^", "z"] {
        let before = left.len();
        left.retain(|name| !name.starts_with(prefix));
        assert_eq!(storage.reset_usage_prefix(prefix).await?, (before - left.len()) as u64, "{prefix}");
        let found: Vec<String> = raw.words("KEYS gcli2api:usage:*").lines().map(str::to_owned).collect();
        // With the one of two lines that is no key.
        assert_eq!(found.len(), left.len() + 2, "{prefix}");
    }
    assert_eq!(raw.words("GET usage:a"), "foreign");
    storage.close().await
}

#[tokio::test]
async fn a_limit_counts_records_and_not_keys() -> Result {
    let storage = Storage::<Redis>::open(servers::redis().as_str()).await?;
    let ids: Vec<Key> = (0..400).map(|n| key(&format!("id-{n:03}"))).collect();
    let credentials: Vec<_> =
        ids.iter().map(|id| (id.clone(), json!({ "id": id }).try_into().unwrap())).collect();
    for limit in [0, 1, 99, 100, 101, 250, 399, 400, 401, usize::MAX] {
        assert!(storage.set_credentials(&credentials).await?.is_complete());
        let options = ListOptions::default().with_limit(limit);
        let found: Vec<_> = storage.stream_credentials(options.clone()).try_collect().await?;
        assert!(found.iter().map(|(id, _)| id).eq(ids.iter().take(limit)), "{limit}");
        // The first page is read, and the next 150 records are deleted.
        let mut stream = std::pin::pin!(storage.stream_credentials(options));
        let mut found: Vec<Key> = stream.next().await.transpose()?.into_iter().map(|(id, _)| id).collect();
        storage.delete_credentials(&ids[100..250]).await?.complete()?;
        while let Some((id, _)) = stream.next().await.transpose()? {
            found.push(id);
        }
        assert!(found.iter().eq(ids[..100].iter().chain(&ids[250..]).take(limit)), "{limit}");
    }
    storage.close().await
}

#[tokio::test]
async fn a_stream_ends_after_an_unreadable_record() -> Result {
    let url = servers::redis();
    let prefix = url.split_once("prefix=").unwrap().1;
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let steps: Vec<_> = (0..250).map(|n| (format!("r{n:03}"), "n", 1)).collect();
    assert!(storage.increment_many(&steps).await?.is_complete());
    Raw::to(&url).words(&format!("HSET {prefix}usage:r150 n many"));
    let found: Vec<_> = storage.stream_usage(ListOptions::default()).collect().await;
    let (last, before) = found.split_last().unwrap();
    assert!(before.len() == 100 && before.iter().all(|record| record.is_ok()), "the page before it");
    let error = last.as_ref().unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("r150"))), "{error:?}");
    let rest = ListOptions::default().with_after(key("r150"));
    assert_eq!(storage.stream_usage(rest).try_collect::<Vec<_>>().await?.len(), 99);
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_streamed_in_order() -> Result {
    let cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let keys: Vec<Key> = (0..500).map(|n| key(&format!("k{n:03}"))).collect();
    let steps: Vec<Increment> = keys.iter().map(|key| Increment::new(key, key, 1)).collect();
    assert!(storage.increment_many(&steps).await?.is_complete());
    let mut options = ListOptions::default().with_prefix("k1").with_limit(30);
    let mut found = Vec::new();
    loop {
        let page: Vec<_> = storage.stream_usage(options.clone()).try_collect().await?;
        let Some((last, _)) = page.last() else { break };
        options.after = Some(last.clone());
        found.extend(page.into_iter().map(|(key, _)| key));
    }
    assert_eq!(found, keys[100..200]);
    storage.close().await
}
