//! The statements that the server receives, and the tables that it holds.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use gateway_storage::{
    Credential, ErrorKind, Exportable, Increment, Key, Record,
    lease::{Claim, Holder},
    list::ListOptions,
    revision::Condition,
};
use serde_json::json;

use super::{Result, config, key, open, raw, servers, servers::postgres::Server};

/// Part of every key and value below.
const MARK: &str = "mark-51c2";

#[tokio::test]
async fn an_operation_is_one_statement_and_a_batch_one_per_chunk() -> Result {
    let server = Server::start(&["shared_preload_libraries=pg_stat_statements"]);
    let administrator = raw(&server.url()).await;
    administrator.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    for url in [server.url(), format!("{}&pgbouncer=true", server.url())] {
        let storage = open(&url).await;
        let id = key(MARK);
        let credential: Credential = json!({ "token": MARK }).try_into()?;
        let ids: Vec<Key> = (0..2500).map(|n| key(&format!("{MARK} {n:04}"))).collect();
        let items: Vec<_> = ids.iter().map(|id| (id.clone(), credential.clone())).collect();
        let steps: Vec<_> = ids.iter().map(|id| Increment::new(id, id, 1)).collect();
        let configs: Vec<_> = ids.iter().map(|id| (id.clone(), config(json!(MARK)))).collect();
        let records: Vec<_> = ids
            .iter()
            .map(|id| Record::Credential { id: id.clone(), credential: credential.clone() })
            .collect();
        // Each statement, and how often it ran since the last call of this closure.
        let statements = async || {
            // A process that writes asks now and then whether the store is watched.
            let calls = "SELECT query, sum(calls)::bigint FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%' \
                        AND query NOT LIKE '%watch_until%' \
                        GROUP BY query";
            let rows = administrator.query(calls, &[]).await.unwrap();
            administrator.batch_execute("SELECT pg_stat_statements_reset()").await.unwrap();
            rows.iter().map(|row| (row.get(0), row.get(1))).collect::<BTreeMap<String, i64>>()
        };
        let mut seen = BTreeMap::new();
        macro_rules! sends {
            ($times:literal, $call:expr) => {
                statements().await;
                $call;
                let sent = statements().await;
                assert_eq!(
                    sent.values().copied().collect::<Vec<_>>(),
                    [$times],
                    "{} sent {sent:?}",
                    stringify!($call)
                );
                seen.extend(sent);
            };
        }
        sends!(1, storage.set_credential(&id, &credential).await?);
        sends!(1, storage.get_credential(&id).await?);
        sends!(1, storage.list_credentials().await?);
        sends!(1, storage.delete_credential(&id).await?);
        sends!(3, storage.set_credentials(&items).await?.complete()?);
        sends!(3, storage.get_credentials(&ids).await?.complete()?);
        sends!(3, storage.delete_credentials(&ids).await?.complete()?);
        sends!(3, storage.backend().import(&records).await?.complete()?);
        let few = ListOptions::default().with_prefix(ids[2400].as_str());
        sends!(1, assert_eq!(storage.stream_credentials(few).count().await, 1));
        sends!(1, storage.set_config(&id, json!(MARK)).await?);
        sends!(1, storage.get_config(&id).await?);
        sends!(1, storage.list_configs().await?);
        sends!(3, storage.set_configs(&configs).await?.complete()?);
        sends!(3, storage.get_configs(&ids).await?.complete()?);
        let some = ListOptions::default().with_prefix(MARK).with_limit(600);
        sends!(3, assert_eq!(storage.stream_configs(some.clone()).count().await, 600));
        sends!(1, storage.delete_config(&id).await?);
        #[expect(clippy::needless_late_init, reason = "the macro assigns it")]
        let revision;
        sends!(1, revision = storage.set_credential_if(&id, &credential, Condition::Absent).await?);
        sends!(1, storage.get_credential_with_revision(&id).await?);
        sends!(1, storage.set_credential_if(&id, &credential, Condition::Unchanged(revision)).await?);
        sends!(1, storage.delete_credential_if(&id, revision).await?);
        sends!(1, storage.increment_usage(&id, &id, 1).await?);
        sends!(3, storage.increment_many(&steps).await?.complete()?);
        sends!(1, storage.increment_within(&id, &id, 1, 3).await?);
        sends!(1, storage.increment_within(&id, &id, 2, 3).await?);
        sends!(1, storage.increment_within("another", &id, 2, 1).await?);
        sends!(1, storage.get_usage(&id).await?);
        sends!(1, storage.get_counter(&id, &id).await?);
        sends!(3, storage.get_usages(&ids).await?.complete()?);
        sends!(1, storage.list_usage().await?);
        sends!(3, assert_eq!(storage.stream_usage(some.clone()).count().await, 600));
        sends!(1, assert_eq!(storage.stream_usage(some.clone().with_limit(1)).count().await, 1));
        sends!(1, storage.reset_usage(&id).await?);
        sends!(1, assert_eq!(storage.reset_usage_prefix(MARK).await?, 2500));
        let (ttl, holder) = (Duration::from_secs(60), Holder::random());
        sends!(1, storage.claim_lease(&id, &holder, ttl).await?);
        sends!(1, storage.claim_lease(&id, &Holder::random(), ttl).await?);
        let Claim::Yours(lease) = storage.claim_lease(&id, &holder, ttl).await? else {
            panic!("another holder has it");
        };
        sends!(1, storage.renew_lease(&lease, ttl).await?);
        sends!(1, storage.list_leases().await?);
        sends!(1, storage.release_lease(&lease, ttl).await?);
        sends!(1, storage.health().await?);
        sends!(1, storage.stats().await?);

        statements().await;
        let mut tx = storage.begin().await?;
        tx.set_config(&id, &config(json!(MARK))).await?;
        tx.get_config(&id).await?;
        tx.commit().await?;
        assert_eq!(storage.export().count().await, 1 + 2500 + 2500);
        let sent = statements().await;
        println!("a transaction and an export: {sent:#?}");
        seen.extend(sent);
        assert!(seen.keys().all(|text| !text.contains(MARK)), "a value is in a statement");
        administrator.batch_execute("DROP SCHEMA gateway_storage CASCADE").await.unwrap();
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn stored_documents_can_be_queried_and_read_back_unchanged() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    let value =
        json!({ "project_id": "p-1", "n": u64::MAX, "zero": -0.0, "big": 1e300, "a.b": { "$c": [null] } });
    storage.set_credential("alice", value.clone()).await?;
    storage.set_credential("nul", json!({ "project_id": "\0" })).await?;
    storage.increment_usage("alice", "tokens", 41).await?;
    storage.increment_usage("alice", "requests", 1).await?;
    assert_eq!(storage.get_credential("alice").await?, value.try_into()?);
    assert_eq!(storage.get_credential("nul").await?, json!({ "project_id": "\0" }).try_into()?);

    let (other, schema) = (raw(&url).await, super::schema(&url));
    let query =
        format!("SELECT value->>'project_id', value->>'n' FROM {schema}.credentials WHERE id = 'alice'");
    let row = other.query_one(&query, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("p-1", "18446744073709551615"));
    let query = format!("SELECT key, sum(count)::bigint FROM {schema}.usage GROUP BY key ORDER BY 2 DESC");
    let row = other.query_one(&query, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("alice", 42_i64));

    // Documents from another program.
    for (text, readable) in [("{\"a\": 1,\n \"b\":[ ]}", true), ("[1]", false), ("{\"n\":1e999}", false)] {
        let put = format!(
            "INSERT INTO {schema}.credentials VALUES ('other', $1::text::json) ON CONFLICT (id) DO UPDATE SET value = excluded.value"
        );
        other.execute(&put, &[&text]).await.unwrap();
        match storage.get_credential("other").await {
            Ok(found) => assert!(readable && found == json!({ "a": 1, "b": [] }).try_into()?),
            Err(error) => {
                assert!(!readable, "{text}");
                assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("other"))));
                let found = storage.get_credentials(&[key("alice"), key("other")]).await?;
                assert_eq!((found.values.len(), found.failures.len()), (1, 1));
            }
        }
    }
    storage.close().await
}

#[tokio::test]
async fn an_export_is_a_snapshot_despite_concurrent_writes() -> Result {
    let storage = open(&format!("{}&idle_in_transaction_session_timeout=300ms", servers::postgres())).await;
    let ids: Vec<Key> = (0..1200).map(|n| key(&format!("{n:04}"))).collect();
    let before: Credential = json!({ "when": "before" }).try_into()?;
    let items: Vec<_> = ids.iter().map(|id| (id.clone(), before.clone())).collect();
    storage.set_credentials(&items).await?.complete()?;
    storage.set_config("a", json!("before")).await?;
    storage.increment_usage("a", "n", 1).await?;

    let exported = storage.clone();
    let mut export = std::pin::pin!(exported.export());
    let first = export.next().await.expect("a record")?;
    storage.delete_credentials(&ids).await?.complete()?;
    storage.set_config("a", json!("after")).await?;
    storage.set_config("b", json!("after")).await?;
    storage.increment_usage("a", "n", 1).await?;
    // A consumer may pause for longer than the idle timeout of transactions.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut records = vec![first];
    while let Some(record) = export.next().await {
        records.push(record?);
    }
    let expected = items.into_iter().map(|(id, credential)| Record::Credential { id, credential }).chain([
        Record::Config { key: key("a"), value: config(json!("before")) },
        Record::Usage { key: key("a"), field: key("n"), count: 1 },
    ]);
    assert!(records == expected.collect::<Vec<_>>());
    storage.close().await
}
