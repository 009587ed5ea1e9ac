//! The names of Redis keys, with data of other programs and among many keys.

use super::*;

#[tokio::test]
async fn reads_data_of_the_go_program() -> Result {
    let url = servers::redis();
    let (_, prefix) = url.split_once("prefix=").unwrap();
    let mut raw = Raw::to(&url);
    let name = |rest: &str| format!("{prefix}{rest}");
    raw.ask(&[b"SET", name("cred:alice").as_bytes(), br#"{"access_token":"t","n":18446744073709551615}"#]);
    raw.ask(&[b"SET", name("cred:broken").as_bytes(), b"{"]);
    raw.ask(&[b"SET", name("cache:models").as_bytes(), b"\0\xff", b"PX", b"60000"]);
    for (field, value) in [
        ("quoted", &br#""text""#[..]),
        ("bare", b"127.0.0.1:8317"),
        ("number", b"5"),
        ("list", b"[1,\"two\"]"),
        ("null", b"null"),
    ] {
        raw.ask(&[b"HSET", name("config").as_bytes(), field.as_bytes(), value]);
    }
    raw.ask(&[b"HSET", name("usage:alice").as_bytes(), b"requests", b"41"]);
    raw.ask(&[b"HSET", name("usage:bob").as_bytes(), b"requests", b"many", b"tokens", b"7"]);
    raw.ask(&[b"SET", name("usage:odd").as_bytes(), b"1"]);

    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let expected = Credential::try_from(json!({ "access_token": "t", "n": u64::MAX }))?;
    assert_eq!(storage.get_credential("alice").await?, expected);
    let broken = storage.get_credential("broken").await.unwrap_err();
    assert_eq!((broken.kind(), broken.key()), (ErrorKind::Corrupt, Some(&key("broken"))));
    let found = storage.get_credentials(&[key("alice"), key("broken"), key("none")]).await?;
    assert_eq!(found.values, BTreeMap::from([(key("alice"), expected)]));
    let kinds: Vec<_> = found.failures.iter().map(|failure| failure.error.kind()).collect();
    assert_eq!(kinds, [ErrorKind::Corrupt, ErrorKind::NotFound]);
    raw.ask(&[b"HSET", name("cred:hash").as_bytes(), b"a", b"b"]);
    let of_a_wrong_type = storage.get_credentials(&[key("alice"), key("hash")]).await?;
    assert_eq!(of_a_wrong_type.failures[0].error.kind(), ErrorKind::Corrupt);
    assert_eq!(storage.get_credential("hash").await.unwrap_err().kind(), ErrorKind::Corrupt);
    raw.ask(&[b"SET", name("cred:not\na key").as_bytes(), b"{}"]);
    assert!(storage.stats().await?.details["warnings"].to_string().contains("1 records have names"));
    assert_eq!(storage.list_credentials().await.unwrap_err().kind(), ErrorKind::Corrupt);
    raw.ask(&[b"DEL", name("cred:not\na key").as_bytes(), name("cred:hash").as_bytes()]);
    assert_eq!(storage.get_cache("models").await?, b"\0\xff");

    let configs: BTreeMap<_, _> = storage
        .list_configs()
        .await?
        .into_iter()
        .map(|(key, value)| (key.as_str().to_owned(), value.value().clone()))
        .collect();
    assert_eq!(
        json!(configs),
        json!({ "quoted": "text", "bare": "127.0.0.1:8317", "number": 5, "list": [1, "two"], "null": null })
    );

    assert_eq!(storage.increment_usage("alice", "requests", 1).await?, 42);
    for error in [
        storage.get_usage("bob").await.unwrap_err(),
        storage.increment_usage("bob", "requests", 1).await.unwrap_err(),
        storage.list_usage().await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Corrupt, Outcome::NotApplied));
        assert!(error.key() == Some(&key("bob")) || error.key() == Some(&key("odd")));
        assert!(!format!("{error:?}").contains("many"));
    }
    assert_eq!(storage.increment_usage("bob", "tokens", 1).await?, 8, "other fields are usable");
    for error in [
        storage.get_usage("odd").await.unwrap_err(),
        storage.increment_usage("odd", "requests", 1).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("odd"))));
    }
    let many = [("bob", "requests"), ("bob", "tokens"), ("odd", "x"), ("alice", "requests")]
        .map(|(record, field)| Increment::new(&key(record), &key(field), 1));
    let report = storage.increment_many(&many).await?;
    assert_eq!((&report.totals[..], report.failures.len()), (&[None, Some(9), None, Some(43)][..], 2));
    assert!(report.failures.iter().all(|failure| failure.error.kind() == ErrorKind::Corrupt));
    storage.close().await
}

#[tokio::test]
async fn writes_data_that_the_go_program_reads() -> Result {
    let url = servers::redis();
    let (_, prefix) = url.split_once("prefix=").unwrap();
    let mut raw = Raw::to(&url);
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    storage.set_credential("alice", json!({ "b": 1, "a": "x" })).await?;
    storage.set_config("host", json!("local")).await?;
    storage.increment_usage("alice", "requests", 3).await?;
    storage.set_cache("models", b"bytes", Duration::from_secs(60)).await?;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&raw.words(&format!("GET {prefix}cred:alice"))).unwrap(),
        json!({ "a": "x", "b": 1 })
    );
    assert_eq!(raw.words(&format!("TTL {prefix}cred:alice")), "-1");
    assert_eq!(raw.words(&format!("HGET {prefix}config host")), "\"local\"");
    assert_eq!(raw.words(&format!("HGET {prefix}usage:alice requests")), "3");
    assert_eq!(raw.words(&format!("GET {prefix}cache:models")), "bytes");
    let left: i64 = raw.words(&format!("PTTL {prefix}cache:models")).parse().unwrap();
    assert!((50_000..=60_000).contains(&left), "{left}");
    storage.close().await
}

#[tokio::test]
async fn a_prefix_is_not_a_pattern_and_other_keys_are_untouched() -> Result {
    let server = Server::start(&[]);
    let mut raw = Raw::to(&server.url());
    let foreign = ["app1:cred:x", "xy:cred:x", "ay:usage:x", "app[1]:credx", "app[1]:config2", "cred:x", "*"];
    for name in foreign {
        raw.words(&format!("SET {name} foreign"));
    }
    for prefix in ["app[1]:", "?y:", "*", "\\", "a-z^:", ""] {
        let encoded: String = prefix.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let storage = Storage::<Redis>::open(format!("{}?prefix={encoded}", server.url()).as_str()).await?;
        // With the empty prefix the foreign `cred:x` is a credential of the store.
        let own = if prefix.is_empty() { vec![key("mine"), key("x")] } else { vec![key("mine")] };
        storage.set_credential("mine", json!({})).await?;
        storage.increment_usage("mine", "n", 1).await?;
        assert_eq!(storage.list_credentials().await?, own, "{prefix:?}");
        assert_eq!(storage.list_usage().await?.into_keys().collect::<Vec<_>>(), [key("mine")], "{prefix:?}");
        let stats = storage.stats().await?;
        assert_eq!((stats.credential_count, stats.usage_record_count), (own.len() as u64, 1), "{prefix:?}");
        storage.delete_credential("mine").await?;
        storage.reset_usage("mine").await?;
        storage.close().await?;
    }
    assert_eq!(raw.words("DBSIZE"), foreign.len().to_string());
    for name in foreign {
        assert_eq!(raw.words(&format!("GET {name}")), "foreign");
    }
    Ok(())
}

/// The output of the command, and its peak memory in KiB.
#[cfg(all(feature = "cli", target_os = "linux"))]
fn peak_memory(line: &[&str]) -> (String, u64) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_storage"))
        .args(line)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while process.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    let ended = process.wait_with_output().unwrap();
    assert!(ended.status.success());
    (String::from_utf8(ended.stdout).unwrap(), peak)
}

#[cfg(all(feature = "cli", target_os = "linux"))]
#[test]
fn a_million_other_keys_take_no_memory() {
    let server = Server::start(&["--appendonly", "no"]);
    let list = ["--url", &server.url(), "credential", "list"].map(String::from);
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    for id in ["a", "b"] {
        server.raw().words(&format!("SET gcli2api:cred:{id} {{}}"));
    }
    let (output, alone) = peak_memory(&list);
    assert_eq!(output, "a\nb\n");
    let fill = "for n = 1, 1000000 do redis.call('SET', 'gcli2api:credit:' .. n, 'x') end return 1";
    server.raw().ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    assert_eq!(server.raw().words("DBSIZE"), "1000002");
    let (output, peak) = peak_memory(&list);
    println!("{alone} KiB, and {peak} KiB among a million other keys");
    assert_eq!(output, "a\nb\n");
    // The names of the other keys alone would take 80 MiB.
    assert!(alone > 2 << 10 && peak < alone + (16 << 10), "{peak} KiB instead of {alone} KiB");
    assert_eq!(server.raw().words("DBSIZE"), "1000002");
}

#[tokio::test]
async fn a_large_store_is_listed_exported_and_imported_among_other_keys() -> Result {
    let server = Server::start(&["--appendfsync", "no"]);
    let mut raw = Raw::to(&server.url());
    let fill = "for n = 1, 20000 do redis.call('SET', 'foreign:' .. n, 'x') end return 1";
    raw.ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let ids: Vec<Key> = (0..2_300).map(|n| key(&format!("id-{n:05}"))).collect();
    let credentials: Vec<_> =
        ids.iter().map(|id| (id.clone(), json!({ "id": id }).try_into().unwrap())).collect();
    assert!(storage.set_credentials(&credentials).await?.is_complete());
    let steps: Vec<Increment> = ids.iter().map(|id| Increment::new(id, &key("n"), 5)).collect();
    assert_eq!(storage.increment_many(&steps).await?.complete()?, [5; 2_300]);
    storage.set_config("a", json!([1])).await?;
    assert_eq!(storage.list_credentials().await?, ids);
    assert_eq!(storage.list_usage().await?.len(), 2_300);

    let records: Vec<Record> = storage.export().map(|record| record.unwrap()).collect().await;
    assert_eq!(records.len(), 2_300 + 1 + 2_300);
    let copy = Storage::<Redis>::open(format!("{}?prefix=copy:", server.url()).as_str()).await?;
    for _ in 0..2 {
        let report = copy.import(stream::iter(records.clone().into_iter().map(Ok))).await?;
        assert_eq!((report.succeeded, report.is_complete()), (records.len(), true));
    }
    let copied: Vec<Record> = copy.export().map(|record| record.unwrap()).collect().await;
    assert!(copied == records);
    assert_eq!(storage.delete_credentials(&ids).await?.succeeded, 2_300);
    assert_eq!(storage.list_credentials().await?, []);
    assert_eq!(copy.list_credentials().await?, ids);
    copy.close().await?;
    storage.close().await
}

/// An export and a stream hold 200,000 keys in memory, and scan again for the next ones.
#[test]
fn more_keys_than_fit_in_memory_are_read_in_order() {
    const COUNT: usize = 250_000;
    let server = Server::start(&["--appendonly", "no"]);
    let fill = format!(
        "for n = 1, {COUNT} do redis.call('SET', 'gcli2api:cred:' .. string.format('%06d', n), '{{}}') end return 1"
    );
    server.raw().ask(&[b"EVAL", fill.as_bytes(), b"0"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let storage = runtime.block_on(Storage::<Redis>::open(server.url().as_str())).unwrap();
    let mut count = 0;
    let held = allocation_counter::measure(|| {
        runtime.block_on(async {
            let mut records = std::pin::pin!(storage.export());
            while let Some(record) = records.next().await {
                count += 1;
                assert_eq!(record.unwrap().key().as_str(), format!("{count:06}"));
            }
        });
    });
    assert_eq!(count, COUNT);
    assert!(held.bytes_max < 15 << 20, "{} bytes", held.bytes_max);
    let held = allocation_counter::measure(|| {
        runtime.block_on(async {
            let mut records = std::pin::pin!(storage.stream_credentials(Default::default()));
            while let Some(record) = records.next().await {
                assert_eq!(record.unwrap().0.as_str(), format!("{:06}", COUNT + 1 - count));
                count -= 1;
            }
        });
    });
    assert_eq!(count, 0);
    assert!(held.bytes_max < 15 << 20, "{} bytes", held.bytes_max);
}
