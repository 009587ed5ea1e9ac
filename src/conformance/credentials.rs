//! The contract of [`CredentialStore`]: the contract of documents, and batches that delete.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use serde_json::{Value, json};

use super::{
    batches::{MANY, batches, fill, one_per_key, reordered, with_missing},
    complete, concurrently,
    documents::{Documents, clear, documents},
    drop_after, hostile_credentials, key, must, numbered, ok, same, same_failures, same_keys,
    streams::{Streamed, streams},
};
use crate::{
    BatchFailure, BatchReport, Credential, CredentialStore, ErrorKind, Found, Key, Result, Storage,
    StorageStats, model::ListOptions,
};

/// Asserts the contract of [`CredentialStore`].
///
/// # Panics
///
/// At the first violated bullet.
pub async fn credentials<B: CredentialStore>(storage: &Storage<B>) {
    documents::<Credentials, B>(storage).await;
    batches::<Credentials, B>(storage).await;
    streams::<Credentials, B>(storage).await;
    must("delete_credentials: NotFound is a failure and stops nothing", deletes(storage.clone())).await;
    must("delete_credentials: a repeated id has one result, repeated", deletes_twice(storage.clone())).await;
    must("delete_credentials: of nothing, and of many", sizes(storage.clone())).await;
    must("concurrent deletes of the same ids succeed once", overlapping(storage.clone())).await;
    must("a dropped batch leaves whole items and disturbs nothing", dropped(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

pub(super) struct Credentials;

impl<B: CredentialStore> Documents<B> for Credentials {
    const NAME: &'static str = "credential";

    async fn get(storage: &Storage<B>, key: &Key) -> Result<Value> {
        storage.get_credential(key).await.map(|credential| Value::Object(credential.fields().clone()))
    }

    async fn set(storage: &Storage<B>, key: &Key, value: Value) -> Result<()> {
        storage.set_credential(key, value).await
    }

    async fn delete(storage: &Storage<B>, key: &Key) -> Result<()> {
        storage.delete_credential(key).await
    }

    async fn get_many(
        storage: &Storage<B>,
        keys: &[Key],
    ) -> Result<(BTreeMap<Key, Value>, Vec<BatchFailure>)> {
        let Found { values, failures } = storage.get_credentials(keys).await?;
        let value = |(id, found): (Key, Credential)| (id, Value::Object(found.fields().clone()));
        Ok((values.into_iter().map(value).collect(), failures))
    }

    async fn set_many(storage: &Storage<B>, items: Vec<(Key, Value)>) -> Result<BatchReport> {
        storage.set_credentials(items).await
    }

    async fn list(storage: &Storage<B>) -> Result<Vec<Key>> {
        storage.list_credentials().await
    }

    fn count(stats: &StorageStats) -> u64 {
        stats.credential_count
    }

    fn hostile_values() -> Vec<Value> {
        hostile_credentials().iter().map(|credential| Value::Object(credential.fields().clone())).collect()
    }
}

impl<B: CredentialStore> Streamed<B> for Credentials {
    const NAME: &'static str = "credentials";

    async fn put(storage: &Storage<B>, keys: &[Key]) {
        fill::<Self, B>(storage, keys).await;
    }

    async fn remove(storage: &Storage<B>, id: &Key) -> Result<()> {
        storage.delete_credential(id).await
    }

    async fn stream(storage: &Storage<B>, options: ListOptions) -> Result<Vec<(Key, bool)>> {
        let records: Vec<(Key, Credential)> = storage.stream_credentials(options).try_collect().await?;
        let is_whole = |id: &Key, found: &Credential| found.get("key") == Some(&json!(id.as_str()));
        Ok(records.into_iter().map(|(id, found)| (id.clone(), is_whole(&id, &found))).collect())
    }
}

async fn is_empty<B: CredentialStore>(storage: Storage<B>) {
    same_keys("ids", &[], ok("list", storage.list_credentials().await));
}

async fn deletes<B: CredentialStore>(storage: Storage<B>) {
    fill::<Credentials, B>(&storage, &["a", "b", "c", "d"].map(key)).await;
    let ids = ["no 1", "b", "no 2", "d"].map(key);
    let report = ok("delete_credentials", storage.delete_credentials(&ids).await);
    same_failures("delete_credentials", ErrorKind::NotFound, &[(0, &ids[0]), (2, &ids[2])], &report.failures);
    same("the number reported as deleted", 2, report.succeeded);
    same_keys("ids that stay", &[key("a"), key("c")], ok("list", storage.list_credentials().await));
    for id in &ids {
        super::fails("get after delete", ErrorKind::NotFound, storage.get_credential(id).await);
    }
    let again = ok("delete_credentials", storage.delete_credentials(&ids).await);
    same("the number deleted and failed, again", (0, 4), (again.succeeded, again.failures.len()));
    clear::<Credentials, B>(&storage).await;
}

async fn deletes_twice<B: CredentialStore>(storage: Storage<B>) {
    fill::<Credentials, B>(&storage, &[key("a")]).await;
    let ids = ["a", "no", "a", "no"].map(key);
    let report = ok("delete_credentials", storage.delete_credentials(&ids).await);
    same_failures("delete_credentials", ErrorKind::NotFound, &[(1, &ids[1]), (3, &ids[3])], &report.failures);
    same("the number reported as deleted", 2, report.succeeded);
    is_empty(storage).await;
}

async fn sizes<B: CredentialStore>(storage: Storage<B>) {
    complete("delete_credentials", 0, storage.delete_credentials(Vec::<Key>::new()).await);
    let ids = numbered("many ", MANY);
    fill::<Credentials, B>(&storage, &ids).await;
    let mixed = with_missing(&ids);
    let missing: Vec<(usize, &Key)> = mixed.iter().enumerate().step_by(10).collect();
    let report = ok("delete_credentials", storage.delete_credentials(&mixed).await);
    same_failures("delete_credentials", ErrorKind::NotFound, &missing, &report.failures);
    same("the number reported as deleted", MANY - missing.len(), report.succeeded);
    let stay: Vec<Key> = ids.into_iter().step_by(10).collect();
    same_keys("ids that stay", &stay, ok("list", storage.list_credentials().await));
    clear::<Credentials, B>(&storage).await;
}

async fn overlapping<B: CredentialStore>(storage: Storage<B>) {
    let ids = numbered("shared ", 50);
    fill::<Credentials, B>(&storage, &ids).await;
    let reports = concurrently((0..8).map(|task| delete_reordered(storage.clone(), ids.clone(), task))).await;
    same("the number reported as deleted, by all tasks", ids.len(), reports.into_iter().sum());
    is_empty(storage).await;
}

async fn delete_reordered<B: CredentialStore>(storage: Storage<B>, ids: Vec<Key>, task: usize) -> usize {
    ok("delete_credentials", storage.delete_credentials(&reordered(ids, task)).await).succeeded
}

async fn dropped<B: CredentialStore>(storage: Storage<B>) {
    let ids = numbered("dropped ", MANY);
    let items = one_per_key(&ids);
    for polls in 0..8 {
        if let Some(report) = drop_after(polls, storage.set_credentials(items.clone())).await {
            complete("set_credentials", items.len(), report);
        }
        let found = ok("get_credentials after a dropped batch", storage.get_credentials(&ids).await);
        for (id, found) in &found.values {
            same("an item of a dropped batch", Some(&json!(id.as_str())), found.get("key"));
        }
        drop(drop_after(polls, storage.delete_credentials(&ids)).await);
    }
    super::settle().await;
    fill::<Credentials, B>(&storage, &ids).await;
    complete("delete_credentials after dropped batches", ids.len(), storage.delete_credentials(&ids).await);
}
