//! Watches of a File store: of one process, and of several that share it.
//!
//! `WATCH_CHANGES=100000 cargo test --test backends storm` makes that many changes. `WATCH_SEED` repeats a
//! run, as far as its kills go.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    pin::{Pin, pin},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use gateway_storage::{
    ErrorKind, File, Key, OptionalExt, Record, Result, Sharing, Storage,
    history::DocumentKind::{self, Config, Credential},
    plan::{ApplyOptions, Plan, Rollback, RollbackOptions},
    revision::Condition,
    watch::{Cursor, Event, WatchOptions},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use super::file::{exclusive, open, reading, shared};

const LONG: Duration = Duration::from_secs(60);

fn memory_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// A watch of a handle.
struct Watching<'s>(Pin<Box<dyn Stream<Item = Result<Event>> + Send + 's>>);

impl<'s> Watching<'s> {
    /// After its first event.
    async fn begin(storage: &'s Storage<File>) -> Self {
        let mut watching = Self::from(storage, None);
        assert!(matches!(watching.next().await, Event::Resync { .. }));
        watching
    }

    fn from(storage: &'s Storage<File>, from: Option<Cursor>) -> Self {
        let mut options = WatchOptions::default();
        options.from = from;
        Self(Box::pin(storage.watch(options)))
    }

    async fn next(&mut self) -> Event {
        self.ended().await.expect("the watch goes on")
    }

    async fn ended(&mut self) -> Result<Event> {
        timeout(LONG, self.0.next()).await.expect("an event").expect("an event or an error")
    }

    /// Reads events until all of these are told, each with its key. Returns how many events that took.
    async fn told(&mut self, what: &str, wanted: &[(DocumentKind, &str)]) -> usize {
        let mut missing: BTreeSet<_> = wanted.iter().map(|(kind, key)| (*kind, (*key).to_owned())).collect();
        let mut count = 0;
        while !missing.is_empty() {
            match self.next().await {
                Event::Changed { kind, key: Some(key), .. } => {
                    missing.remove(&(kind, key.as_str().to_owned()));
                    count += 1;
                }
                Event::Idle { .. } => {}
                event => panic!("{what}: {event:?}"),
            }
        }
        count
    }

    /// The next event that is not Idle.
    async fn next_change(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Idle { .. } => {}
                event => return event,
            }
        }
    }

    /// Reads events until this document was told, or that any of its kind may have changed.
    async fn hears(&mut self, wanted: DocumentKind, name: &str) {
        loop {
            match self.next_change().await {
                Event::Changed { kind, key, .. } if kind == wanted => {
                    if key.is_none_or(|key| key.as_str() == name) {
                        return;
                    }
                }
                Event::Changed { .. } => {}
                event => panic!("{event:?}"),
            }
        }
    }

    /// The events until nothing was missed up to now, without Idle.
    async fn rest(&mut self) -> Vec<Event> {
        let mut rest = Vec::new();
        // The first Idle may have been told before.
        for _ in 0..2 {
            loop {
                match self.next().await {
                    Event::Idle { .. } => break,
                    event => rest.push(event),
                }
            }
        }
        rest
    }
}

/// Every way to write tells each of its keys once, in an exclusive store and in a shared one.
#[tokio::test]
async fn every_write_tells_its_keys() {
    for mode in [Sharing::Exclusive, Sharing::MultiWriter] {
        let base = memory_dir();
        let storage = shared(base.path(), mode).await.unwrap();
        storage.set_config("before", json!(1)).await.unwrap();
        let mut watching = Watching::begin(&storage).await;
        let keys = ["x", "y"].map(|key| Key::new(key).unwrap());
        let count = 4 + 6 + 1 + 2 + 2 + 1 + 1 + 1;

        storage.set_credential("a", json!({})).await.unwrap();
        storage.set_config("a", json!(1)).await.unwrap();
        storage.delete_credential("a").await.unwrap();
        storage.delete_config("a").await.unwrap();
        storage.set_credentials(keys.clone().map(|key| (key, json!({})))).await.unwrap().complete().unwrap();
        storage.set_configs(keys.clone().map(|key| (key, json!(1)))).await.unwrap().complete().unwrap();
        storage.delete_credentials(&keys).await.unwrap().complete().unwrap();
        let revision = storage.set_config_if("if", json!(1), Condition::Absent).await.unwrap();
        storage.set_config_if("if", json!(1), Condition::Absent).await.unwrap_err();
        let plan = Plan::from_json(r#"[{"set":"p","value":1},{"delete":"x"}]"#).unwrap();
        storage.apply_plan("k", &plan, &ApplyOptions::default()).await.unwrap();
        let rolled_back = storage.rollback_plan("k", &RollbackOptions::default()).await.unwrap();
        assert_eq!(rolled_back, Rollback::RolledBack);
        storage.delete_config_if("if", revision).await.unwrap();
        storage.increment_usage("a", "n", 1).await.unwrap();
        let record = Record::Config { key: keys[0].clone(), value: json!(7).try_into().unwrap() };
        storage.import(stream::iter([Ok(record)])).await.unwrap().complete().unwrap();
        storage.set_config("last", json!(1)).await.unwrap();

        let told = watching.told("all", &[(Config, "last")]).await;
        assert_eq!(told, count, "{mode:?}");
        assert_eq!(watching.rest().await, [], "{mode:?}: own changes are told once");
        storage.clone().close().await.unwrap();
        assert_eq!(watching.ended().await.unwrap_err().kind(), ErrorKind::Closed);
    }
}

/// The documents of a store, read again as a watch tells.
#[derive(Default, PartialEq, Eq, Debug)]
struct Mirror(BTreeMap<(DocumentKind, Key), Value>);

impl Mirror {
    async fn of(storage: &Storage<File>) -> Self {
        let mut mirror = Self::default();
        mirror.list(storage, Credential).await;
        mirror.list(storage, Config).await;
        mirror
    }

    async fn list(&mut self, storage: &Storage<File>, kind: DocumentKind) {
        let keys: Vec<Key> = match kind {
            Credential => storage.list_credentials().await.unwrap(),
            _ => storage.list_configs().await.unwrap().into_keys().collect(),
        };
        self.0.retain(|(of, _), _| *of != kind);
        for key in keys {
            self.read(storage, kind, key).await;
        }
    }

    async fn read(&mut self, storage: &Storage<File>, kind: DocumentKind, key: Key) {
        let found = match kind {
            Credential => {
                storage.get_credential(&key).await.optional().unwrap().map(|found| json!(found.fields()))
            }
            _ => storage.get_config(&key).await.optional().unwrap().map(|found| found.value().clone()),
        };
        match found {
            Some(value) => drop(self.0.insert((kind, key), value)),
            None => drop(self.0.remove(&(kind, key))),
        }
    }

    async fn hears(&mut self, storage: &Storage<File>, event: &Event) {
        match event {
            Event::Changed { kind, key: Some(key), .. } => self.read(storage, *kind, key.clone()).await,
            Event::Changed { kind, key: None, .. } => self.list(storage, *kind).await,
            Event::Resync { .. } => *self = Self::of(storage).await,
            Event::Idle { .. } => {}
        }
    }
}

/// Writes few documents to few values, so that writers often change back what another one has changed.
async fn write(storage: &Storage<File>, random: &mut fastrand::Rng, count: u64) {
    for _ in 0..count {
        let key = Key::new(&format!("key-{}", random.u8(..6))).unwrap();
        let value = json!({ "n": random.u8(..2) });
        let written = match random.u8(..10) {
            0..3 => storage.set_credential(&key, value).await,
            3..5 => storage.set_config(&key, value).await,
            5..7 => storage.delete_credential(&key).await.optional().map(drop),
            7..9 => storage.delete_config(&key).await.optional().map(drop),
            _ => storage.increment_usage(&key, "n", 1).await.map(drop),
        };
        written.unwrap();
    }
}

const WRITER: &str = "WATCH_WRITER";

/// The process to kill, if the variable is set; otherwise an empty test.
#[tokio::test]
async fn watched_writer() {
    let Some(path) = std::env::var_os(WRITER) else { return };
    let storage = open(path).await.unwrap();
    write(&storage, &mut fastrand::Rng::new(), u64::MAX).await;
}

/// Starts a process that writes until it is killed.
fn writer(path: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "file_watch::watched_writer"]).env(WRITER, path).stdout(Stdio::null());
    command.spawn().unwrap()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Two handles write and watch, a process writes and is killed again and again, and the store is compacted.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_of_all_that_share_a_store_nothing_is_missed() {
    let seed = number("WATCH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let changes = number("WATCH_CHANGES").unwrap_or(600);
    println!("WATCH_SEED={seed}, {changes} changes by each handle");
    let base = memory_dir();
    let (one, two) = (open(base.path()).await.unwrap(), open(base.path()).await.unwrap());
    let watches: Vec<_> = [&one, &two]
        .into_iter()
        .map(|storage| {
            let storage = storage.clone();
            let (done, is_done) = tokio::sync::oneshot::channel::<()>();
            let watch = tokio::spawn(async move {
                let (mut watching, mut mirror) = (Watching::from(&storage, None), Mirror::default());
                let (mut counts, mut is_done) = ([0_u64; 3], pin!(is_done));
                let mut events = Vec::new();
                loop {
                    let is_last = is_done.as_mut().now_or_never().is_some();
                    match is_last {
                        true => events.extend(watching.rest().await),
                        false => events.push(watching.next().await),
                    }
                    for event in events.drain(..) {
                        counts[match &event {
                            Event::Changed { key: Some(_), .. } => 0,
                            Event::Changed { key: None, .. } => 1,
                            Event::Resync { .. } => 2,
                            Event::Idle { .. } => continue,
                        }] += 1;
                        mirror.hears(&storage, &event).await;
                    }
                    if is_last {
                        break;
                    }
                }
                (mirror, counts)
            });
            (done, watch)
        })
        .collect();

    let writers = [&one, &two].into_iter().enumerate().map(|(n, storage)| {
        let (storage, mut random) = (storage.clone(), fastrand::Rng::with_seed(seed ^ n as u64));
        tokio::spawn(async move { write(&storage, &mut random, changes).await })
    });
    let writers: Vec<_> = writers.collect();
    let mut random = fastrand::Rng::with_seed(!seed);
    let mut kills = 0;
    while kills < 3 || !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let mut child = writer(base.path());
        tokio::time::sleep(Duration::from_millis(random.u64(50..300))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        if kills % 3 == 1 {
            one.backend().compact().await.unwrap();
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let stored = Mirror::of(&one).await;
    assert_eq!(Mirror::of(&two).await, stored, "both read the same");
    for (done, watch) in watches {
        done.send(()).unwrap();
        let (mirror, counts) = watch.await.unwrap();
        println!("{kills} kills; keys, kinds, resyncs: {counts:?}");
        let differs = |key: &&(DocumentKind, Key)| mirror.0.get(*key) != stored.0.get(*key);
        let missed: Vec<_> = mirror
            .0
            .keys()
            .chain(stored.0.keys())
            .filter(differs)
            .map(|(kind, key)| (kind, key.as_str()))
            .collect();
        assert!(missed.is_empty(), "missed: {missed:?}");
        assert!(counts[0] > counts[1] && counts[2] == 1, "most changes have their keys");
    }
}

/// One handle only watches, so that all it is told of comes from its looks.
#[tokio::test]
async fn another_handle_tells_exact_keys_and_no_counters() {
    let base = memory_dir();
    let (one, two) = (open(base.path()).await.unwrap(), open(base.path()).await.unwrap());
    let three = reading(base.path(), Sharing::MultiWriter).await.unwrap();
    let mut watching = Watching::begin(&one).await;
    // A process learns within a moment that the store is watched.
    two.increment_usage("a", "n", 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    two.increment_usage("a", "n", 1).await.unwrap();
    watching.rest().await;

    let mut reader = Watching::begin(&three).await;
    two.set_config("a", json!(1)).await.unwrap();
    assert_eq!(watching.told("set", &[(Config, "a")]).await, 1);
    two.set_credential("a", json!({})).await.unwrap();
    assert_eq!(watching.told("set", &[(Credential, "a")]).await, 1);
    two.delete_config("a").await.unwrap();
    assert_eq!(watching.told("delete", &[(Config, "a")]).await, 1);
    two.delete_credential("a").await.unwrap();
    assert_eq!(watching.told("delete", &[(Credential, "a")]).await, 1);
    // A reader does not know whether all that write count their commits.
    reader.hears(Credential, "a").await;
    watching.rest().await;
    for n in 0..100 {
        two.increment_usage("a", "n", n).await.unwrap();
    }
    assert_eq!(watching.rest().await, [], "a counter is not watched");
    let many = (0..300).map(|n| (Key::new(&format!("{n}")).unwrap(), json!(n)));
    two.set_configs(many).await.unwrap().complete().unwrap();
    let rest = watching.rest().await;
    assert!(
        matches!(rest[..], [Event::Changed { key: None, .. }, Event::Changed { key: None, .. }]),
        "{rest:?}"
    );
}

/// The writer of such a store does not count its commits.
#[tokio::test]
async fn a_reader_beside_a_single_writer_is_told_that_something_has_changed() {
    let base = memory_dir();
    let writer = shared(base.path(), Sharing::SingleWriter).await.unwrap();
    let reader = reading(base.path(), Sharing::SingleWriter).await.unwrap();
    let mut watching = Watching::begin(&reader).await;
    for _ in 0..2 {
        writer.set_config("a", json!(fastrand::u64(..))).await.unwrap();
        assert!(matches!(watching.next_change().await, Event::Changed { key: None, .. }));
        writer.backend().compact().await.unwrap();
        watching.rest().await;
    }
    drop(writer);
    let writer = shared(base.path(), Sharing::SingleWriter).await.unwrap();
    watching.rest().await;
    writer.set_config("b", json!(1)).await.unwrap();
    assert!(matches!(watching.next_change().await, Event::Changed { key: None, .. }));
}

/// What one handle has changed, another one changes back at once.
#[tokio::test]
async fn what_is_changed_back_is_told() {
    let base = memory_dir();
    let (one, two) = (open(base.path()).await.unwrap(), open(base.path()).await.unwrap());
    let mut watching = Watching::begin(&one).await;
    for _ in 0..20 {
        one.set_config("a", json!(1)).await.unwrap();
        watching.hears(Config, "a").await;
        two.delete_config("a").await.unwrap();
        watching.hears(Config, "a").await;
    }
}

/// With a compaction by each of them, which removes the log.
#[tokio::test]
async fn a_watch_goes_on_in_the_compacted_file() {
    let base = memory_dir();
    let (one, two) = (open(base.path()).await.unwrap(), open(base.path()).await.unwrap());
    let mut watching = Watching::begin(&one).await;
    for n in 0..3 {
        for (compacts, writes) in [(&one, &two), (&two, &one), (&two, &two)] {
            writes.set_config("before", json!(n)).await.unwrap();
            compacts.backend().compact().await.unwrap();
            watching.hears(Config, "before").await;
            writes.set_config("after", json!(n)).await.unwrap();
            watching.hears(Config, "after").await;
        }
    }
}

/// The task of a watch does not keep the store open, also while it looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_store_that_is_dropped_can_be_opened_at_once() {
    let base = memory_dir();
    for round in 0..30 {
        let mode = if round % 2 == 0 { Sharing::Exclusive } else { Sharing::MultiWriter };
        let storage = shared(base.path(), mode).await.unwrap();
        storage.set_config("a", json!(round)).await.unwrap();
        let (watching, other) = (Watching::begin(&storage).await, Watching::begin(&storage).await);
        if round % 3 == 0 {
            storage.set_config("b", json!("x".repeat(1_000_000))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop((watching, other));
        drop(storage);
        drop(exclusive(base.path()).await.expect("it is open nowhere"));
    }
}

#[tokio::test]
async fn a_cursor_holds_while_the_handle_is_open() {
    let base = memory_dir();
    let storage = exclusive(base.path()).await.unwrap();
    let mut watching = Watching::begin(&storage).await;
    storage.set_config("a", json!(1)).await.unwrap();
    let Event::Changed { cursor, .. } = watching.next_change().await else { panic!() };
    drop(watching);
    storage.set_config("b", json!(1)).await.unwrap();
    let mut later = Watching::from(&storage, Some(cursor.clone()));
    assert_eq!(later.told("since", &[(Config, "b")]).await, 1);
    drop(later);
    drop(storage);

    let storage = exclusive(base.path()).await.unwrap();
    let mut another = Watching::from(&storage, Some(cursor.clone()));
    assert!(matches!(another.next().await, Event::Resync { .. }), "it is of another process");
    drop(another);
    drop(storage);

    // In a shared store, while there is another watch.
    let (one, two) = (open(base.path()).await.unwrap(), open(base.path()).await.unwrap());
    let mut watching = Watching::begin(&one).await;
    two.set_config("a", json!(2)).await.unwrap();
    let Event::Changed { cursor, .. } = watching.next_change().await else { panic!() };
    two.set_config("c", json!(2)).await.unwrap();
    watching.hears(Config, "c").await;
    let mut later = Watching::from(&one, Some(cursor.clone()));
    later.hears(Config, "c").await;
    drop((later, watching));
    let mut after = Watching::from(&one, Some(cursor));
    assert!(matches!(after.next().await, Event::Resync { .. }), "nothing looked meanwhile");
}

#[tokio::test]
async fn a_store_that_is_replaced_is_watched_as_it_is_read() {
    let base = memory_dir();
    let (path, copy) = (base.path().join("store"), base.path().join("copy"));
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.backend().backup(&copy).await.unwrap();
    let mut watching = Watching::begin(&storage).await;
    std::fs::rename(&path, base.path().join("gone")).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    let restored = open(&path).await.unwrap();
    restored.set_config("a", json!(2)).await.unwrap();
    assert_eq!(watching.rest().await, []);
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1), "reads go on with what is open");
    drop(watching);
    Watching::begin(&restored).await;
}
