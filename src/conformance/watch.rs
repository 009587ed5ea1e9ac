//! The contract of [`Watch`].

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

use futures_util::{
    StreamExt,
    future::{Either, select},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, timeout, timeout_at},
};

use super::{
    WaitLimit, complete, concurrently,
    configs::Configs,
    credentials::Credentials,
    documents::Documents,
    hostile_keys, key, must, numbered, ok,
    plans::{plan, value},
    same,
    transactions::{is_empty, wipe},
};
use crate::{
    ConfigBatch, ConfigStore, Credential, CredentialStore, ErrorKind, Exportable, Key, OptionalExt, Record,
    Result, Storage, Transactional,
    capability::{Conditional, Watch},
    event::{Cursor, Event, WatchOptions},
    history::DocumentKind::{self, Config, Credential as OfCredentials},
    model::Condition,
    plan::{ApplyOptions, Mutation, Rollback, RollbackOptions},
};

/// How long an event may take on a busy machine.
const LATEST: Duration = Duration::from_secs(30);

/// The contract has 5 s; the rest is for a busy machine.
const LONGEST_IDLE: Duration = Duration::from_secs(15);

/// A Resync is allowed for a connection that was lost, but not in place of events.
const MOST_RESYNCS: usize = 3;

/// More than a backend keeps for a reader.
const MANY: usize = 10_000;

/// Asserts the contract of [`Watch`], in a store without credentials and configs.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn watch<B: Watch + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    must("the kit needs a storage without credentials and configs", is_empty(storage.clone())).await;
    must("a watch begins with Resync", begins(storage.clone())).await;
    must("each change is told, with its key", tells(storage.clone())).await;
    must("changes of one kind, if one is asked for", tells_one_kind(storage.clone())).await;
    must("each watch is told, also if another one ends", tells_each(storage.clone())).await;
    must("a watch from a cursor tells what has changed since", goes_on(storage.clone())).await;
    must("a watch from a cursor of another store begins with Resync", unknown_cursor(storage.clone())).await;
    must("a reader that is too slow gets a Resync in place of what it missed", slow(storage.clone())).await;
    must("of concurrent changes none is missed", concurrent(storage.clone())).await;
    must("Idle comes if nothing changes", idle(storage.clone())).await;
    must("the kit leaves nothing", is_empty(storage.clone())).await;
}

/// Asserts that conditional writes are told.
///
/// # Panics
///
/// If one is not.
pub async fn watch_conditional<B: Watch + Conditional>(storage: &Storage<B>) {
    must("a conditional write is told", by_condition(storage.clone())).await;
    must("next_change ends at a change", wakes(storage.clone())).await;
}

/// Asserts that plans and their rollbacks are told.
///
/// # Panics
///
/// If one is not.
pub async fn watch_plans<B: Watch + ConfigBatch>(storage: &Storage<B>) {
    must("a plan and its rollback are told", by_plan(storage.clone())).await;
}

/// Asserts that transactions are told.
///
/// # Panics
///
/// If one is not.
pub async fn watch_transactions<B: Watch + Transactional>(storage: &Storage<B>) {
    must("a transaction is told", by_transaction(storage.clone())).await;
}

/// Asserts that imports are told.
///
/// # Panics
///
/// If one is not.
pub async fn watch_import<B: Watch + Exportable + CredentialStore + ConfigStore>(storage: &Storage<B>) {
    must("an import is told", by_import(storage.clone())).await;
}

/// Asserts that closing ends a watch. **Closes the storage.**
///
/// # Panics
///
/// If it does not end with [`Closed`](ErrorKind::Closed).
pub async fn watch_at_close<B: Watch>(storage: &Storage<B>) {
    must("close: a watch ends with Closed", ends_at_close(storage.clone())).await;
}

/// A watch that a task reads.
struct Watching {
    events: mpsc::UnboundedReceiver<Result<Event>>,
    resyncs: usize,
    /// The cursor of the last event.
    cursor: Option<Cursor>,
}

impl Watching {
    fn with<B: Watch>(storage: &Storage<B>, options: WatchOptions) -> Self {
        let (told, events) = mpsc::unbounded_channel();
        let storage = storage.clone();
        tokio::spawn(async move {
            let mut stream = pin!(storage.watch(options));
            let mut unread = pin!(told.closed());
            while let Either::Left((Some(event), _)) = select(stream.next(), unread.as_mut()).await {
                drop(told.send(event));
            }
        });
        Self { events, resyncs: 0, cursor: None }
    }

    /// From now on.
    async fn begin<B: Watch>(storage: &Storage<B>) -> Self {
        let mut watching = Self::with(storage, WatchOptions::default());
        watching.begins().await;
        watching
    }

    /// Reads the first event of a watch without a cursor.
    async fn begins(&mut self) {
        match self.next("the first event").await {
            Event::Resync { cursor } => self.cursor = Some(cursor),
            event => panic!("the first event is {event:?}"),
        }
    }

    async fn next(&mut self, what: &str) -> Event {
        let next = timeout(LATEST, self.events.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("{what}: no event in {LATEST:?}"));
        let event = ok("watch", next.unwrap_or_else(|| panic!("{what}: the stream has ended")));
        self.cursor = Some(event.cursor().clone());
        event
    }

    /// Reads until these changes have been told.
    async fn tells(&mut self, what: &str, kind: DocumentKind, keys: &[Key]) {
        let mut missing: BTreeSet<&Key> = keys.iter().collect();
        let until = Instant::now() + LATEST;
        while !missing.is_empty() {
            let Ok(event) = timeout_at(until, self.next(what)).await else {
                let names: Vec<&str> = missing.iter().take(5).map(|key| key.as_str()).collect();
                panic!("{what}: {} of {} are not told, such as {names:?}", missing.len(), keys.len());
            };
            match event {
                Event::Changed { kind: of, key: Some(key), .. } if of == kind => drop(missing.remove(&key)),
                Event::Changed { kind: of, key: None, .. } if of == kind => missing.clear(),
                Event::Changed { .. } | Event::Idle { .. } => {}
                Event::Resync { .. } => {
                    self.resyncs += 1;
                    assert!(self.resyncs <= MOST_RESYNCS, "{what}: a Resync in place of events");
                    missing.clear();
                }
            }
        }
    }
}

fn credential(n: usize) -> Credential {
    ok("a credential of the kit", Credential::try_from(json!({ "n": n })))
}

async fn begins<B: Watch>(storage: Storage<B>) {
    drop(Watching::begin(&storage).await);
    let config = WatchOptions::default().with_kind(Config);
    Watching::with(&storage, config).begins().await;
}

async fn tells<B: Watch + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    let keys = hostile_keys(storage.backend().max_key_bytes());
    for round in 0..2 {
        for key in &keys {
            ok("set_credential", storage.set_credential(key, credential(round)).await);
        }
        watching.tells("set_credential", OfCredentials, &keys).await;
        for key in &keys {
            ok("set_config", storage.set_config(key, json!(round)).await);
        }
        watching.tells("set_config", Config, &keys).await;
    }
    for key in &keys {
        ok("delete_credential", storage.delete_credential(key).await);
    }
    watching.tells("delete_credential", OfCredentials, &keys).await;
    for key in &keys {
        ok("delete_config", storage.delete_config(key).await);
    }
    watching.tells("delete_config", Config, &keys).await;

    let credentials: Vec<_> = keys.iter().map(|key| (key.clone(), credential(3))).collect();
    complete("set_credentials", keys.len(), storage.set_credentials(&credentials).await);
    watching.tells("set_credentials", OfCredentials, &keys).await;
    let configs: Vec<_> = keys.iter().map(|key| (key.clone(), value(json!(3)))).collect();
    complete("set_configs", keys.len(), storage.set_configs(&configs).await);
    watching.tells("set_configs", Config, &keys).await;
    complete("delete_credentials", keys.len(), storage.delete_credentials(&keys).await);
    watching.tells("delete_credentials", OfCredentials, &keys).await;
    wipe(&storage).await;
}

async fn tells_one_kind<B: Watch + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let a = [key("a")];
    for (kind, other) in [(Config, OfCredentials), (OfCredentials, Config)] {
        let mut watching = Watching::with(&storage, WatchOptions::default().with_kind(kind));
        watching.begins().await;
        ok("set_credential", storage.set_credential("a", credential(1)).await);
        ok("set_config", storage.set_config("a", json!(1)).await);
        wipe(&storage).await;
        watching.tells("a change of this kind", kind, &a).await;
        while let Ok(event) = watching.events.try_recv() {
            if let Event::Changed { kind, .. } = ok("watch", event) {
                assert!(kind != other, "a change of another kind is told");
            }
        }
    }
}

async fn tells_each<B: Watch + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let (mut one, two) = (Watching::begin(&storage).await, Watching::begin(&storage).await);
    let mut three = Watching::begin(&storage).await;
    ok("set_config", storage.set_config("a", json!(1)).await);
    one.tells("a change before another watch ends", Config, &[key("a")]).await;
    three.tells("a change before another watch ends", Config, &[key("a")]).await;
    drop(two);
    ok("set_credential", storage.set_credential("b", credential(1)).await);
    one.tells("a change after another watch ended", OfCredentials, &[key("b")]).await;
    drop(one);
    wipe(&storage).await;
    three.tells("a change after the first watch ended", Config, &[key("a")]).await;
}

async fn goes_on<B: Watch + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    ok("set_credential", storage.set_credential("a", credential(1)).await);
    watching.tells("set_credential", OfCredentials, &[key("a")]).await;
    let cursor = watching.cursor.take().expect("an event has a cursor");
    // The second watch begins before the first one ends, the third one after there was none.
    for first in [Some(watching), None] {
        let new = numbered("since", 20);
        for key in &new {
            ok("set_config", storage.set_config(key, json!(2)).await);
        }
        ok("delete_credential", storage.delete_credential("a").await);
        let from = WatchOptions::default().with_from(cursor.clone());
        let mut later = Watching::with(&storage, from.clone());
        later.tells("a change since the cursor", Config, &new).await;
        let mut credentials = Watching::with(&storage, from.with_kind(OfCredentials));
        credentials.tells("a delete since the cursor", OfCredentials, &[key("a")]).await;
        drop(first);
        ok("set_credential", storage.set_credential("a", credential(2)).await);
        later.tells("a change after that", OfCredentials, &[key("a")]).await;
        credentials.tells("a change after that", OfCredentials, &[key("a")]).await;
    }
    wipe(&storage).await;
}

async fn unknown_cursor<B: Watch>(storage: Storage<B>) {
    let label = storage.label();
    for text in ["another", &format!("{label}:"), &format!("{label}:1.2.3"), &format!("{label}:0.0"), label] {
        let cursor = ok("a cursor", Cursor::new(text));
        Watching::with(&storage, WatchOptions::default().with_from(cursor)).begins().await;
    }
}

async fn slow<B: Watch + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let ids = numbered("slow", MANY);
    let mut events = pin!(storage.watch(WatchOptions::default().with_kind(OfCredentials)));
    assert!(matches!(events.next().await, Some(Ok(Event::Resync { .. }))), "it begins with Resync");
    for ids in ids.chunks(1000) {
        let credentials: Vec<_> = ids.iter().map(|id| (id.clone(), credential(1))).collect();
        complete("set_credentials", ids.len(), storage.set_credentials(&credentials).await);
    }
    let mut missing: BTreeSet<&Key> = ids.iter().collect();
    let until = Instant::now() + LATEST;
    while !missing.is_empty() {
        let Ok(event) = timeout_at(until, events.next()).await else {
            panic!("{} of {MANY} changes are not told, and there was no Resync", missing.len());
        };
        match ok("watch", event.expect("the stream goes on")) {
            Event::Changed { key: Some(key), .. } => drop(missing.remove(&key)),
            Event::Changed { key: None, .. } | Event::Resync { .. } => missing.clear(),
            Event::Idle { .. } => {}
        }
    }
    for ids in ids.chunks(1000) {
        complete("delete_credentials", ids.len(), storage.delete_credentials(ids).await);
    }
}

/// A copy of some records, which reads again what it is told of.
struct Mirror<B> {
    storage: Storage<B>,
    keys: Vec<Key>,
    records: BTreeMap<(DocumentKind, Key), Option<Value>>,
}

impl<B: CredentialStore + ConfigStore> Mirror<B> {
    async fn read(&mut self, kind: DocumentKind, key: &Key) {
        let read = match kind {
            OfCredentials => <Credentials as Documents<B>>::get(&self.storage, key).await,
            Config => <Configs as Documents<B>>::get(&self.storage, key).await,
        };
        self.records.insert((kind, key.clone()), ok("get", read.optional()));
    }

    async fn read_all(&mut self, kinds: &[DocumentKind]) {
        for kind in kinds {
            for key in self.keys.clone() {
                self.read(*kind, &key).await;
            }
        }
    }

    async fn hears(&mut self, event: Event) {
        match event {
            // A source may be late: it still tells changes that were made before the watch began.
            Event::Changed { key: Some(key), .. } if !self.keys.contains(&key) => {}
            Event::Changed { kind, key: Some(key), .. } => self.read(kind, &key).await,
            Event::Changed { kind, key: None, .. } => self.read_all(&[kind]).await,
            Event::Resync { .. } => self.read_all(&[OfCredentials, Config]).await,
            Event::Idle { .. } => {}
        }
    }
}

async fn concurrent<B: Watch + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let keys = numbered("shared", 12);
    let mut watching = Watching::begin(&storage).await;
    let mirrors = |storage: &Storage<B>| Mirror {
        storage: storage.clone(),
        keys: keys.clone(),
        records: BTreeMap::new(),
    };
    let (mut mirror, mut stored) = (mirrors(&storage), mirrors(&storage));
    mirror.read_all(&[OfCredentials, Config]).await;
    let shared = (storage.clone(), keys.clone());
    let write = async move {
        concurrently((0..8).map(|task| {
            let (storage, keys) = shared.clone();
            async move {
                let mut random = fastrand::Rng::with_seed(task as u64);
                for n in 0..25 {
                    let key = &keys[random.usize(..keys.len())];
                    match random.u8(..4) {
                        0 => drop(ok("delete_config", storage.delete_config(key).await.optional())),
                        1 => drop(ok("delete_credential", storage.delete_credential(key).await.optional())),
                        2 => ok("set_config", storage.set_config(key, json!([task, n])).await),
                        _ => ok(
                            "set_credential",
                            storage.set_credential(key, credential(task * 1000 + n)).await,
                        ),
                    }
                }
            }
        }))
        .await
    };
    let writers = tokio::spawn(write);
    while !writers.is_finished() {
        if let Ok(Some(event)) = timeout(Duration::from_millis(10), watching.events.recv()).await {
            mirror.hears(ok("watch", event)).await;
        }
    }
    drop(writers.await.expect("the writers end well"));
    stored.read_all(&[OfCredentials, Config]).await;
    let limit = WaitLimit::new();
    while mirror.records != stored.records {
        match watching.events.try_recv() {
            Ok(event) => mirror.hears(ok("watch", event)).await,
            Err(_) => limit.pause("a change is never told").await,
        }
    }
    wipe(&storage).await;
}

async fn idle<B: Watch>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    for _ in 0..2 {
        let until = Instant::now() + LONGEST_IDLE;
        let idle = async { while !matches!(watching.next("Idle").await, Event::Idle { .. }) {} };
        timeout_at(until, idle).await.unwrap_or_else(|_| panic!("no Idle in {LONGEST_IDLE:?}"));
    }
}

async fn by_condition<B: Watch + Conditional>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    let a = [key("a")];
    for kind in [OfCredentials, Config] {
        let record = match kind {
            OfCredentials => Record::Credential { id: key("a"), credential: credential(1) },
            Config => Record::Config { key: key("a"), value: value(json!(1)) },
        };
        let made = storage.backend().set_if(&record, Condition::Absent).await;
        let revision = ok("set_if Absent", made);
        watching.tells("set_if Absent", kind, &a).await;
        let changed = match kind {
            OfCredentials => Record::Credential { id: key("a"), credential: credential(2) },
            Config => Record::Config { key: key("a"), value: value(json!(2)) },
        };
        let set = storage.backend().set_if(&changed, Condition::Unchanged(revision)).await;
        let revision = ok("set_if Unchanged", set);
        watching.tells("set_if Unchanged", kind, &a).await;
        ok("delete_if", storage.backend().delete_if(kind, &a[0], revision).await);
        watching.tells("delete_if", kind, &a).await;
    }
}

async fn wakes<B: Watch + Conditional>(storage: Storage<B>) {
    let watching = Watching::begin(&storage).await;
    let Some(wake) = storage.backend().next_change(OfCredentials, &key("a")) else { return };
    ok("set_credential", storage.set_credential("a", credential(1)).await);
    timeout(LATEST, wake).await.expect("it ends");
    ok("delete_credential", storage.delete_credential("a").await);
    drop(watching);
}

async fn by_plan<B: Watch + ConfigBatch>(storage: Storage<B>) {
    ok("set_config", storage.set_config("b", json!(1)).await);
    let mut watching = Watching::begin(&storage).await;
    let [a, b] = [key("a"), key("b")];
    let plan = plan([Mutation::set(&a, &value(json!(1))), Mutation::delete(&b)]);
    ok("apply_plan", storage.apply_plan("watched", &plan, &ApplyOptions::default()).await);
    watching.tells("apply_plan", Config, &[a.clone(), b.clone()]).await;
    let rolled_back = storage.rollback_plan("watched", &RollbackOptions::default()).await;
    same("the rollback", Rollback::RolledBack, ok("rollback_plan", rolled_back));
    watching.tells("rollback_plan", Config, &[a, b]).await;
    ok("delete_config", storage.delete_config("b").await);
}

async fn by_transaction<B: Watch + Transactional>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    let [a, b] = [key("a"), key("b")];
    let mut tx = ok("begin", storage.begin().await);
    ok("set_config", tx.set_config(&a, &value(json!(1))).await);
    ok("set_credential", tx.set_credential(&b, &credential(1)).await);
    ok("commit", tx.commit().await);
    watching.tells("a transaction's config value", Config, std::slice::from_ref(&a)).await;
    let mut tx = ok("begin", storage.begin().await);
    ok("delete_config", tx.delete_config(&a).await);
    ok("delete_credential", tx.delete_credential(&b).await);
    ok("commit", tx.commit().await);
    watching.tells("a transaction's delete", OfCredentials, &[b]).await;
}

async fn by_import<B: Watch + Exportable + CredentialStore + ConfigStore>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    let a = [key("a")];
    let records = [
        Record::Credential { id: key("a"), credential: credential(1) },
        Record::Config { key: key("a"), value: value(json!(1)) },
    ];
    complete("import", 2, storage.backend().import(&records).await);
    watching.tells("an imported credential", OfCredentials, &a).await;
    // A value that is stored already need not be told.
    let another = Record::Config { key: key("a"), value: value(json!(2)) };
    complete("import", 1, storage.backend().import(&[another]).await);
    watching.tells("an imported config value", Config, &a).await;
    wipe(&storage).await;
}

async fn ends_at_close<B: Watch>(storage: Storage<B>) {
    let mut watching = Watching::begin(&storage).await;
    ok("close", storage.close().await);
    let until = Instant::now() + LATEST;
    loop {
        match timeout_at(until, watching.events.recv()).await.expect("the watch ends") {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                same("the kind of the error", ErrorKind::Closed, error.kind());
                let after = timeout_at(until, watching.events.recv()).await.expect("the stream ends");
                assert!(after.is_none(), "there are events after an error");
                return;
            }
            None => panic!("the stream ends without an error"),
        }
    }
}
