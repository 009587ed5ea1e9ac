//! The contract of [`CredentialStore`]: the contract of documents, and batches.

use serde_json::{Value, json};

use super::{
    complete, concurrently,
    documents::{Documents, clear, documents},
    drop_after, hostile_credentials, hostile_keys, identical_fields, key, must, numbered, ok, same,
    same_failures, same_keys, sorted,
};
use crate::{Credential, CredentialStore, ErrorKind, Key, Result, Storage, StorageStats};

/// The number of items in a large batch: more than one chunk of any backend.
const MANY: usize = 1_200;

/// Asserts the contract of [`CredentialStore`].
///
/// # Panics
///
/// At the first violated bullet.
pub async fn credentials<B: CredentialStore>(storage: &Storage<B>) {
    documents::<Credentials, B>(storage).await;
    must("get_credentials: sorted by id, each missing id a failure", gets(storage.clone())).await;
    must("get_credentials: a repeated id is found once, or fails each time", gets_twice(storage.clone()))
        .await;
    must("set_credentials: equal to what was stored, under any key", sets(storage.clone())).await;
    must("set_credentials: of several under one id the last stays, all succeed", sets_twice(storage.clone()))
        .await;
    must("delete_credentials: NotFound is a failure and stops nothing", deletes(storage.clone())).await;
    must("delete_credentials: a repeated id has one result, repeated", deletes_twice(storage.clone())).await;
    must("a batch of nothing does nothing", nothing(storage.clone())).await;
    must("a batch may be large", large(storage.clone())).await;
    must("concurrent batches over the same ids succeed", overlapping(storage.clone())).await;
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

fn credential(value: Value) -> Credential {
    Credential::try_from(value).expect("the kit's own credentials are valid")
}

fn one_per_id(ids: &[Key]) -> Vec<(Key, Credential)> {
    ids.iter().map(|id| (id.clone(), credential(json!({ "id": id.as_str() })))).collect()
}

async fn fill<B: CredentialStore>(storage: &Storage<B>, ids: &[Key]) {
    complete("set_credentials", ids.len(), storage.set_credentials(&one_per_id(ids)).await);
}

async fn is_empty<B: CredentialStore>(storage: Storage<B>) {
    same_keys("ids", &[], ok("list", storage.list_credentials().await));
}

async fn gets<B: CredentialStore>(storage: Storage<B>) {
    fill(&storage, &["b", "a", "d", "c"].map(key)).await;
    let ids = ["d", "no 2", "a", "no 1", "c", "A"].map(key);
    let found = ok("get_credentials", storage.get_credentials(&ids).await);
    same("ids that are found", vec!["a", "c", "d"], found.values.keys().map(Key::as_str).collect());
    for (id, found) in &found.values {
        same("its credential", Some(&json!(id.as_str())), found.get("id"));
    }
    let failures = [(1, &ids[1]), (3, &ids[3]), (5, &ids[5])];
    same_failures("get_credentials", ErrorKind::NotFound, &failures, &found.failures);
    clear::<Credentials, B>(&storage).await;
}

async fn gets_twice<B: CredentialStore>(storage: Storage<B>) {
    fill(&storage, &[key("a")]).await;
    let ids = ["no", "a", "no", "a", "a"].map(key);
    let found = ok("get_credentials", storage.get_credentials(&ids).await);
    same("ids that are found", vec![&ids[1]], found.values.keys().collect());
    same_failures("get_credentials", ErrorKind::NotFound, &[(0, &ids[0]), (2, &ids[2])], &found.failures);
    clear::<Credentials, B>(&storage).await;
}

async fn sets<B: CredentialStore>(storage: Storage<B>) {
    // Only small ones: they all go into one call, whose size a server may limit.
    let values = hostile_credentials().into_iter().filter(|credential| credential.to_json().len() < 1_000);
    let items: Vec<(Key, Credential)> =
        hostile_keys(storage.backend().max_key_bytes()).into_iter().zip(values.cycle()).collect();
    complete("set_credentials", items.len(), storage.set_credentials(&items).await);
    let ids: Vec<Key> = items.iter().map(|(id, _)| id.clone()).collect();
    same_keys("ids", &sorted(ids.clone()), ok("list", storage.list_credentials().await));
    let found = ok("get_credentials", storage.get_credentials(&ids).await);
    same_failures("get_credentials", ErrorKind::NotFound, &[], &found.failures);
    for (id, stored) in &items {
        let one = ok("get_credential", storage.get_credential(id).await);
        let of_many = &found.values[id];
        for found in [&one, of_many] {
            let (wanted, seen) = (stored.to_json(), found.to_json());
            assert!(
                identical_fields(stored.fields(), found.fields()),
                "{:?}: {wanted} became {seen}",
                id.as_str()
            );
        }
    }
    complete("delete_credentials", ids.len(), storage.delete_credentials(&ids).await);
    same_keys("ids after delete_credentials", &[], ok("list", storage.list_credentials().await));
}

async fn sets_twice<B: CredentialStore>(storage: Storage<B>) {
    let numbers = [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5)];
    let items = numbers.map(|(id, n)| (key(id), credential(json!({ (format!("n{n}")): n }))));
    complete("set_credentials", items.len(), storage.set_credentials(&items).await);
    same("the last value of a", &items[4].1, &ok("get", storage.get_credential("a").await));
    same("the last value of b", &items[3].1, &ok("get", storage.get_credential("b").await));
    clear::<Credentials, B>(&storage).await;
}

async fn deletes<B: CredentialStore>(storage: Storage<B>) {
    fill(&storage, &["a", "b", "c", "d"].map(key)).await;
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
    fill(&storage, &[key("a")]).await;
    let ids = ["a", "no", "a", "no"].map(key);
    let report = ok("delete_credentials", storage.delete_credentials(&ids).await);
    same_failures("delete_credentials", ErrorKind::NotFound, &[(1, &ids[1]), (3, &ids[3])], &report.failures);
    same("the number reported as deleted", 2, report.succeeded);
    is_empty(storage).await;
}

async fn nothing<B: CredentialStore>(storage: Storage<B>) {
    complete("set_credentials", 0, storage.set_credentials(Vec::<(Key, Credential)>::new()).await);
    complete("delete_credentials", 0, storage.delete_credentials(Vec::<Key>::new()).await);
    let found = ok("get_credentials", storage.get_credentials(Vec::<Key>::new()).await);
    same("found and failed", (0, 0), (found.values.len(), found.failures.len()));
    is_empty(storage).await;
}

async fn large<B: CredentialStore>(storage: Storage<B>) {
    let ids = numbered("many ", MANY);
    fill(&storage, &ids).await;
    same_keys("ids", &ids, ok("list", storage.list_credentials().await));

    // Every tenth id is missing, so that an index within a chunk can't pass for the index within the batch.
    let mixed: Vec<Key> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| if n % 10 == 0 { key(&format!("no {n}")) } else { id.clone() })
        .collect();
    let missing: Vec<(usize, &Key)> = mixed.iter().enumerate().step_by(10).collect();
    let found = ok("get_credentials", storage.get_credentials(&mixed).await);
    same_failures("get_credentials", ErrorKind::NotFound, &missing, &found.failures);
    same("the number found", MANY - missing.len(), found.values.len());
    for (id, found) in &found.values {
        same("its credential", Some(&json!(id.as_str())), found.get("id"));
    }
    let report = ok("delete_credentials", storage.delete_credentials(&mixed).await);
    same_failures("delete_credentials", ErrorKind::NotFound, &missing, &report.failures);
    same("the number reported as deleted", MANY - missing.len(), report.succeeded);
    let stay: Vec<Key> = ids.into_iter().step_by(10).collect();
    same_keys("ids that stay", &stay, ok("list", storage.list_credentials().await));
    clear::<Credentials, B>(&storage).await;
}

async fn overlapping<B: CredentialStore>(storage: Storage<B>) {
    let ids = numbered("shared ", 50);
    concurrently((0..8).map(|task| set_reordered(storage.clone(), ids.clone(), task))).await;
    same_keys("ids", &ids, ok("list", storage.list_credentials().await));
    let reports = concurrently((0..8).map(|task| delete_reordered(storage.clone(), ids.clone(), task))).await;
    same("the number reported as deleted, by all tasks", ids.len(), reports.into_iter().sum());
    is_empty(storage).await;
}

/// A different order for each task, half of them backwards: locks taken in these orders would deadlock.
fn reordered(mut ids: Vec<Key>, task: usize) -> Vec<Key> {
    ids.rotate_left(task * 7 % 50);
    if task % 2 == 1 {
        ids.reverse();
    }
    ids
}

async fn set_reordered<B: CredentialStore>(storage: Storage<B>, ids: Vec<Key>, task: usize) {
    let ids = reordered(ids, task);
    for _ in 0..4 {
        fill(&storage, &ids).await;
    }
}

async fn delete_reordered<B: CredentialStore>(storage: Storage<B>, ids: Vec<Key>, task: usize) -> usize {
    ok("delete_credentials", storage.delete_credentials(&reordered(ids, task)).await).succeeded
}

async fn dropped<B: CredentialStore>(storage: Storage<B>) {
    let ids = numbered("dropped ", MANY);
    let items = one_per_id(&ids);
    for polls in 0..8 {
        if let Some(report) = drop_after(polls, storage.set_credentials(&items)).await {
            complete("set_credentials", items.len(), report);
        }
        let found = ok("get_credentials after a dropped batch", storage.get_credentials(&ids).await);
        for (id, found) in &found.values {
            same("an item of a dropped batch", &credential(json!({ "id": id.as_str() })), found);
        }
        drop(drop_after(polls, storage.delete_credentials(&ids)).await);
    }
    super::settle().await;
    fill(&storage, &ids).await;
    complete("delete_credentials after dropped batches", ids.len(), storage.delete_credentials(&ids).await);
}
