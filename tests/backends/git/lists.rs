//! Batches of config values and streams.

use futures_util::{StreamExt, TryStreamExt};
use gateway_storage::{ErrorKind, Key, Result, list::ListOptions};
use serde_json::json;
use tempfile::TempDir;

use super::{commits, is_clean, open};

#[tokio::test]
async fn a_batch_of_values_is_one_commit() -> Result<()> {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await?;
    storage.set_config("a", json!(0)).await?;
    let before = commits(storage.backend().path());
    let values = [("a", json!(1)), ("b", json!("x")), ("c", json!(null)), ("a", json!(2))];
    assert_eq!(storage.set_configs(values).await?.complete()?, 4);
    assert_eq!(commits(storage.backend().path()), before + 1);
    let found = storage.get_configs(["c", "none", "a", "a"]).await?;
    assert_eq!(
        found.values.into_values().map(|value| value.value().clone()).collect::<Vec<_>>(),
        [json!(2), json!(null)]
    );
    let failures: Vec<_> =
        found.failures.iter().map(|failure| (failure.index, failure.error.kind())).collect();
    assert_eq!(failures, [(1, ErrorKind::NotFound)]);
    is_clean(storage.backend().path());
    Ok(())
}

/// A stream is a snapshot: what is committed meanwhile changes nothing of it.
#[tokio::test]
async fn a_stream_has_the_records_of_its_options_at_the_time_of_the_call() -> Result<()> {
    let base = TempDir::new().unwrap();
    let storage = open(base.path()).await?;
    let names = ["a", "a b", "a%", "a*", "a/b", "a/c", "ab", "b", "é"];
    storage.set_configs(names.map(|name| (name, json!(name)))).await?.complete()?;
    storage.set_credentials(names.map(|name| (name, json!({ "of": name })))).await?.complete()?;
    for prefix in ["", "a", "a/", "a*", "a%", "a\0", "c", "é"] {
        for after in [None, Some("a"), Some("a/b"), Some("a0"), Some("z")] {
            for limit in [None, Some(0), Some(2), Some(100)] {
                let mut options = ListOptions::default().with_prefix(prefix);
                (options.after, options.limit) = (after.map(|after| Key::new(after).unwrap()), limit);
                let is_named =
                    |name: &&str| name.starts_with(prefix) && after.is_none_or(|after| *name > after);
                let wanted: Vec<_> = names.into_iter().filter(is_named).take(limit.unwrap_or(100)).collect();
                let configs: Vec<_> = storage.stream_configs(options.clone()).try_collect().await?;
                assert!(
                    configs.iter().map(|(key, _)| key.as_str()).eq(wanted.iter().copied()),
                    "{options:?}"
                );
                assert!(configs.iter().all(|(key, value)| value.value() == key.as_str()));
                let credentials: Vec<_> = storage.stream_credentials(options).try_collect().await?;
                assert!(credentials.iter().map(|(key, _)| key.as_str()).eq(wanted.iter().copied()));
                assert!(credentials.iter().all(|(key, found)| found.get("of") == Some(&json!(key.as_str()))));
            }
        }
    }
    let stream = storage.stream_configs(ListOptions::default());
    storage.delete_config("a/b").await?;
    storage.set_config("z", json!(1)).await?;
    assert_eq!(stream.count().await, names.len());
    let closed = storage.clone();
    storage.close().await?;
    let ended: Vec<_> = closed.stream_credentials(ListOptions::default()).collect().await;
    assert_eq!((ended.len(), ended[0].as_ref().unwrap_err().kind()), (1, ErrorKind::Closed));
    Ok(())
}
