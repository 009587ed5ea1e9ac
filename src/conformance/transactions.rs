//! The contract of [`Transactional`] and [`Transaction`].

use serde_json::{Value, json};

use super::{
    WaitLimit, concurrently, configs::Configs, credentials::Credentials, documents::clear, fails,
    fails_about, hostile_credentials, hostile_keys, hostile_values, identical, identical_fields, key, must,
    ok, same, same_keys, settle,
};
use crate::{
    ConfigStore, ConfigValue, Credential, CredentialStore, ErrorKind, Key, OptionalExt, Outcome, Result,
    Storage, StorageTransaction, Transaction, Transactional, transact,
};

/// Asserts the contract of [`Transactional`] and [`Transaction`], in a store without credentials and configs.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn transactions<B: Transactional + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    must("the kit needs a storage without credentials and configs", is_empty(storage.clone())).await;
    must("get, delete in a transaction: NotFound if there is none, and it goes on", missing(storage.clone()))
        .await;
    must("begin: it sees its own writes", own_writes(storage.clone())).await;
    must("get in a transaction: equal to what was stored", equal(storage.clone())).await;
    must("commit: all changes are visible at once, none before", commits(storage.clone())).await;
    must("commit: no reader sees a part", atomic(storage.clone())).await;
    must("rollback: forgets all changes", rolls_back(storage.clone())).await;
    must("dropping a transaction rolls back", drops(storage.clone())).await;
    must("begin: it sees the store as it was at one moment", snapshot(storage.clone())).await;
    must("commit: of two that change the same record one gets Conflict", lost_update(storage.clone())).await;
    must("commit: of two that make the same record one gets Conflict", both_make(storage.clone())).await;
    must("commit: a write from outside, between read and write, is a Conflict", outside(storage.clone()))
        .await;
    must("commit: of two in a write skew at least one commits", write_skew(storage.clone())).await;
    must("commit: transactions on different records don't conflict", disjoint(storage.clone())).await;
    must("transact!: concurrent increments are counted exactly", counts(storage.clone())).await;
    must("transact!: an error rolls back and is returned to the caller", aborts(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

/// Asserts that a transaction that is open at close can't commit. **Closes the storage.**
///
/// # Panics
///
/// If it commits.
pub async fn transactions_at_close<B: Transactional>(storage: &Storage<B>) {
    must("close: an open transaction can't commit", closes(storage.clone())).await;
}

async fn closes<B: Transactional>(storage: Storage<B>) {
    let mut tx = begin(&storage).await;
    ok("set_config", tx.set_config(&key("a"), &config(json!(1))).await);
    ok("close", storage.close().await);
    fails("commit after close", ErrorKind::Closed, tx.commit().await);
}

pub(super) async fn is_empty<B: CredentialStore + ConfigStore>(storage: Storage<B>) {
    same_keys("ids", &[], ok("list_credentials", storage.list_credentials().await));
    same("keys", 0, ok("list_configs", storage.list_configs().await).len());
}

pub(super) async fn wipe<B: CredentialStore + ConfigStore>(storage: &Storage<B>) {
    clear::<Credentials, B>(storage).await;
    clear::<Configs, B>(storage).await;
}

async fn begin<B: Transactional>(storage: &Storage<B>) -> StorageTransaction<B::Transaction> {
    ok("begin", storage.begin().await)
}

fn config(value: Value) -> ConfigValue {
    ConfigValue::new(value).expect("the kit's own values are valid")
}

fn credential(value: Value) -> Credential {
    Credential::try_from(value).expect("the kit's own credentials are valid")
}

async fn read<B: ConfigStore>(storage: &Storage<B>, key: &Key) -> Option<Value> {
    ok("get_config", storage.get_config(key).await.optional()).map(|value| value.value().clone())
}

/// Adds to a stored number, in the transaction.
async fn add<T: Transaction>(transaction: &mut T, key: &Key, delta: i64) -> Result<()> {
    let before = transaction.get_config(key).await?.as_i64().expect("a number");
    transaction.set_config(key, &config(json!(before + delta))).await
}

async fn missing<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let (key, mut tx) = (key("no"), begin(&storage).await);
    fails_about("get_credential of a missing id", ErrorKind::NotFound, &key, tx.get_credential(&key).await);
    fails_about(
        "delete_credential of a missing id",
        ErrorKind::NotFound,
        &key,
        tx.delete_credential(&key).await,
    );
    fails_about("get_config of a missing key", ErrorKind::NotFound, &key, tx.get_config(&key).await);
    fails_about("delete_config of a missing key", ErrorKind::NotFound, &key, tx.delete_config(&key).await);
    ok("set_config after NotFound", tx.set_config(&key, &config(json!(1))).await);
    ok("commit after NotFound", tx.commit().await);
    same("the committed value", Some(json!(1)), read(&storage, &key).await);
    wipe(&storage).await;
}

async fn own_writes<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let (old, new) = (key("old"), key("new"));
    ok("set", storage.set_config(&old, json!("before")).await);
    ok("set", storage.set_credential(&old, json!({ "before": 1 })).await);
    let mut tx = begin(&storage).await;
    for key in [&old, &new] {
        for n in 0..2 {
            let (value, fields) = (config(json!(n)), credential(json!({ "n": n })));
            ok("set_config", tx.set_config(key, &value).await);
            ok("set_credential", tx.set_credential(key, &fields).await);
            same("its own config", value, ok("get_config", tx.get_config(key).await));
            same("its own credential", fields, ok("get_credential", tx.get_credential(key).await));
        }
        ok("delete_config", tx.delete_config(key).await);
        ok("delete_credential", tx.delete_credential(key).await);
        fails_about("get_config of one that it deleted", ErrorKind::NotFound, key, tx.get_config(key).await);
        fails_about(
            "get_credential of one that it deleted",
            ErrorKind::NotFound,
            key,
            tx.get_credential(key).await,
        );
        fails_about(
            "delete_config of one that it deleted",
            ErrorKind::NotFound,
            key,
            tx.delete_config(key).await,
        );
        let result = tx.delete_credential(key).await;
        fails_about("delete_credential of one that it deleted", ErrorKind::NotFound, key, result);
    }
    ok("set_config after delete", tx.set_config(&new, &config(json!("again"))).await);
    ok("commit", tx.commit().await);
    same("the value that it deleted", None, read(&storage, &old).await);
    same("the value that it set after its delete", Some(json!("again")), read(&storage, &new).await);
    same_keys("the credentials that it deleted", &[], ok("list", storage.list_credentials().await));
    wipe(&storage).await;
}

async fn equal<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    // Without the largest values, which together exceed what a server takes in one transaction.
    let values: Vec<Value> =
        hostile_values().into_iter().filter(|value| value.to_string().len() < 1_000).collect();
    let credentials = hostile_credentials().into_iter().filter(|fields| fields.to_json().len() < 1_000);
    let keys = hostile_keys(storage.backend().max_key_bytes());
    let (values, credentials): (Vec<_>, Vec<_>) = (
        keys.iter().zip(values.into_iter().cycle()).collect(),
        keys.iter().zip(credentials.cycle()).collect(),
    );

    let mut tx = begin(&storage).await;
    for (key, value) in &values {
        ok(format!("set_config of {:?}", key.as_str()), tx.set_config(key, &config(value.clone())).await);
    }
    for (id, fields) in &credentials {
        ok(format!("set_credential of {:?}", id.as_str()), tx.set_credential(id, fields).await);
    }
    ok("commit", tx.commit().await);

    let mut tx = begin(&storage).await;
    for (key, value) in &values {
        let (inside, outside) = (tx.get_config(key).await, storage.get_config(*key).await);
        for found in [ok("get_config inside", inside), ok("get_config outside", outside)] {
            assert!(identical(value, &found), "{:?}: {value} became {}", key.as_str(), found.to_json());
        }
    }
    for (id, fields) in &credentials {
        let (inside, outside) = (tx.get_credential(id).await, storage.get_credential(*id).await);
        for found in [ok("get_credential inside", inside), ok("get_credential outside", outside)] {
            let (wanted, seen) = (fields.to_json(), found.to_json());
            assert!(
                identical_fields(fields.fields(), found.fields()),
                "{:?}: {wanted} became {seen}",
                id.as_str()
            );
        }
    }
    ok("rollback", tx.rollback().await);
    wipe(&storage).await;
}

/// A transaction that made, changed and deleted one record of each kind.
async fn change<B: Transactional + CredentialStore + ConfigStore>(
    storage: &Storage<B>,
) -> StorageTransaction<B::Transaction> {
    for name in ["changed", "deleted"] {
        ok("set", storage.set_config(name, json!("before")).await);
        ok("set", storage.set_credential(name, json!({ "before": 1 })).await);
    }
    let mut tx = begin(storage).await;
    for key in ["made", "changed"].map(key) {
        ok("set_config", tx.set_config(&key, &config(json!("after"))).await);
        ok("set_credential", tx.set_credential(&key, &credential(json!({ "after": 1 }))).await);
    }
    ok("delete_config", tx.delete_config(&key("deleted")).await);
    ok("delete_credential", tx.delete_credential(&key("deleted")).await);
    tx
}

async fn assert_is<B: CredentialStore + ConfigStore>(storage: &Storage<B>, when: &str, state: &str) {
    let keys = if state == "before" { ["changed", "deleted"] } else { ["changed", "made"] }.map(key).to_vec();
    let configs = ok("list_configs", storage.list_configs().await);
    same_keys(format!("configs {when}"), &keys, configs.keys().cloned());
    assert!(
        configs.values().all(|value| **value == json!(state)),
        "a config {when} is not the value from {state}"
    );
    same(
        format!("credentials {when}"),
        keys.clone(),
        ok("list_credentials", storage.list_credentials().await),
    );
    for id in &keys {
        let found = ok("get_credential", storage.get_credential(id).await);
        same(format!("a credential {when}"), credential(json!({ (state): 1 })), found);
    }
}

async fn commits<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let tx = change(&storage).await;
    assert_is(&storage, "before commit", "before").await;
    ok("commit", tx.commit().await);
    assert_is(&storage, "after commit", "after").await;
    wipe(&storage).await;
}

async fn rolls_back<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let tx = change(&storage).await;
    ok("rollback", tx.rollback().await);
    assert_is(&storage, "after rollback", "before").await;
    wipe(&storage).await;
}

async fn drops<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    drop(change(&storage).await);
    settle().await;
    assert_is(&storage, "after drop", "before").await;
    // A dropped transaction releases its locks and its connection: 40 of them would exhaust any pool.
    for n in 0..40 {
        let limit = WaitLimit::new();
        loop {
            let mut tx = begin(&storage).await;
            match tx.set_config(&key("changed"), &config(json!(n))).await {
                // The previous transaction is still being rolled back.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    limit.pause("a dropped transaction still blocks others").await;
                }
                result => break ok("set_config", result),
            }
        }
    }
    ok("set after drops", storage.set_config("changed", json!("from outside")).await);
    same("set after drops", Some(json!("from outside")), read(&storage, &key("changed")).await);
    wipe(&storage).await;
}

async fn atomic<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = ["left", "right"].map(key);
    for key in &keys {
        ok("set", storage.set_config(key, json!(0)).await);
    }
    let readers = (0..4).map(|_| write_or_read_both(storage.clone(), keys.clone(), false));
    let writer = std::iter::once(write_or_read_both(storage.clone(), keys.clone(), true));
    concurrently(writer.chain(readers)).await;
    wipe(&storage).await;
}

/// The writer writes the same number to both keys, a reader must see the same in both.
async fn write_or_read_both<B: Transactional>(storage: Storage<B>, keys: [Key; 2], writes: bool) {
    for n in 1..50 {
        let mut tx = begin(&storage).await;
        if writes {
            for key in &keys {
                ok("set_config", tx.set_config(key, &config(json!(n))).await);
            }
            ok("commit of the only writer", tx.commit().await);
        } else {
            let left = ok("get_config", tx.get_config(&keys[0]).await);
            tokio::task::yield_now().await;
            let right = ok("get_config", tx.get_config(&keys[1]).await);
            same("the two values that a transaction sees", left.value(), right.value());
            ok("rollback", tx.rollback().await);
        }
    }
}

async fn snapshot<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = ["first", "second", "third"].map(key);
    for key in &keys[..2] {
        ok("set", storage.set_config(key, json!("before")).await);
    }
    let mut tx = begin(&storage).await;
    same("the first", json!("before"), ok("get_config", tx.get_config(&keys[0]).await).value().clone());
    ok("set from outside", storage.set_config(&keys[0], json!("after")).await);
    ok("delete from outside", storage.delete_config(&keys[1]).await);
    ok("set from outside", storage.set_config(&keys[2], json!("after")).await);
    for key in &keys[..2] {
        let seen = ok("get_config after a change from outside", tx.get_config(key).await);
        same("the value that it sees", &json!("before"), seen.value());
    }
    fails("get_config of a value that was made later", ErrorKind::NotFound, tx.get_config(&keys[2]).await);
    ok("rollback", tx.rollback().await);
    same("the value outside", Some(json!("after")), read(&storage, &keys[0]).await);
    wipe(&storage).await;
}

/// Writes in a transaction and commits it. Returns false on a conflict, which the backend may report at the
/// write or at commit, and panics on any other error.
async fn finish<T: Transaction>(mut tx: T, key: Key, value: Value) -> bool {
    let result = match tx.set_config(&key, &config(value)).await {
        Ok(()) => tx.commit().await,
        Err(error) => Err(error).inspect_err(|_| drop(tx)),
    };
    match result {
        Ok(()) => true,
        Err(error) => {
            same("the reason why it did not commit", ErrorKind::Conflict, error.kind());
            same("the outcome of a conflict", Outcome::NotApplied, error.outcome());
            assert!(error.is_retryable(), "a conflict is not retryable");
            false
        }
    }
}

async fn lost_update<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let key = key("counter");
    for joined in [false, true] {
        ok("set", storage.set_config(&key, json!(10)).await);
        let (mut left, mut right) = (begin(&storage).await, begin(&storage).await);
        for tx in [&mut left, &mut right] {
            same("the value that both read", &json!(10), ok("get_config", tx.get_config(&key).await).value());
        }
        let won =
            both(joined, finish(left, key.clone(), json!(11)), finish(right, key.clone(), json!(15))).await;
        let expected = match won {
            [true, false] => json!(11),
            [false, true] => json!(15),
            [true, true] => panic!("both committed: an update is lost"),
            [false, false] => panic!("both got Conflict: one must commit"),
        };
        same("the counter", Some(expected), read(&storage, &key).await);
    }
    wipe(&storage).await;
}

/// Runs one after the other, or both concurrently, which a backend that locks needs.
async fn both(
    joined: bool,
    left: impl Future<Output = bool> + Send,
    right: impl Future<Output = bool> + Send,
) -> [bool; 2] {
    if joined { futures_util::future::join(left, right).await.into() } else { [left.await, right.await] }
}

async fn both_make<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    for (n, joined) in [false, true].into_iter().enumerate() {
        let key = key(&format!("new {n}"));
        let (mut left, mut right) = (begin(&storage).await, begin(&storage).await);
        for tx in [&mut left, &mut right] {
            fails_about("get_config of a missing one", ErrorKind::NotFound, &key, tx.get_config(&key).await);
        }
        let won =
            both(joined, finish(left, key.clone(), json!(0)), finish(right, key.clone(), json!(1))).await;
        same("the number that committed", 1, won.into_iter().filter(|&won| won).count());
        same("the committed value", Some(json!(usize::from(won[1]))), read(&storage, &key).await);
    }
    wipe(&storage).await;
}

async fn outside<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let key = key("counter");
    ok("set", storage.set_config(&key, json!(10)).await);
    let mut tx = begin(&storage).await;
    ok("get_config", tx.get_config(&key).await);
    ok("set from outside", storage.set_config(&key, json!(20)).await);
    same("whether it commits", false, finish(tx, key.clone(), json!(11)).await);
    same("the counter", Some(json!(20)), read(&storage, &key).await);

    let mut tx = begin(&storage).await;
    ok("get_config", tx.get_config(&key).await);
    ok("delete from outside", storage.delete_config(&key).await);
    same("whether it commits", false, finish(tx, key.clone(), json!(11)).await);
    same("the counter", None, read(&storage, &key).await);
    wipe(&storage).await;
}

async fn write_skew<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = ["left", "right"].map(key);
    for key in &keys {
        ok("set", storage.set_config(key, json!("before")).await);
    }
    let (mut left, mut right) = (begin(&storage).await, begin(&storage).await);
    ok("get_config", left.get_config(&keys[1]).await);
    ok("get_config", right.get_config(&keys[0]).await);
    // A serializable backend refuses one of them; snapshot isolation allows both.
    let won = both(
        true,
        finish(left, keys[0].clone(), json!("after")),
        finish(right, keys[1].clone(), json!("after")),
    )
    .await;
    assert!(won[0] || won[1], "both got Conflict: one must commit");
    for (key, won) in keys.iter().zip(won) {
        same("the value", Some(json!(if won { "after" } else { "before" })), read(&storage, key).await);
    }
    wipe(&storage).await;
}

async fn disjoint<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = ["left", "right"].map(key);
    let (mut left, mut right) = (begin(&storage).await, begin(&storage).await);
    ok("set_config", left.set_config(&keys[0], &config(json!(0))).await);
    ok("set_config", right.set_config(&keys[1], &config(json!(1))).await);
    ok("set_credential", left.set_credential(&keys[0], &credential(json!({}))).await);
    ok("set_credential", right.set_credential(&keys[1], &credential(json!({}))).await);
    ok("commit of the first", left.commit().await);
    ok("commit of the second", right.commit().await);
    same_keys("ids", &keys, ok("list", storage.list_credentials().await));
    same("keys", 2, ok("list", storage.list_configs().await).len());
    wipe(&storage).await;
}

async fn counts<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let key = key("counter");
    ok("set", storage.set_config(&key, json!(0)).await);
    let done: i64 = concurrently((0..8).map(|_| count(storage.clone(), key.clone()))).await.into_iter().sum();
    assert!(done > 0, "none of them committed");
    same("the counter after all that are Ok", Some(json!(done)), read(&storage, &key).await);
    wipe(&storage).await;
}

async fn count<B: Transactional>(storage: Storage<B>, key: Key) -> i64 {
    let mut done = 0;
    for _ in 0..10 {
        match transact!(&storage, |tx| { add(tx, &key, 1).await }) {
            Ok(()) => done += 1,
            // Every attempt may conflict, but then nothing is changed.
            Err(error) => same(
                "the reason why it gave up",
                (ErrorKind::Conflict, Outcome::NotApplied),
                (error.kind(), error.outcome()),
            ),
        }
    }
    done
}

async fn aborts<B: Transactional + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let key = key("counter");
    let result: Result<()> = transact!(&storage, |tx| {
        tx.set_config(&key, &config(json!(1))).await?;
        tx.get_credential(&key).await.map(drop)
    });
    fails("the block's own error", ErrorKind::NotFound, result);
    same("the value that it wrote before the error", None, read(&storage, &key).await);
}
