//! Plans that are applied and rolled back one after the other: each is all there or not at all, and applying it again
//! gives its final state, once.

use std::{collections::BTreeMap, time::Duration};

use futures_util::TryStreamExt;
use gateway_storage::{
    Applied, ApplyOptions, AuditFilter, AuditStatus, ConfigBatch, ConfigValue, Key, Mutation, Open, Plan,
    PlanAction, Rollback, RollbackOptions, Storage,
};
use serde_json::json;

use crate::{run_and_kill, runtime, say};

/// How many config values a plan sets.
const WIDTH: usize = 20;

/// How long the fastest take for some plans, in microseconds.
const FAST: u64 = 40_000;

/// Spread evenly, over few rounds and over many.
fn delay(round: u64, longest: u64) -> Duration {
    Duration::from_micros(longest * ((round * 617 + 300) % 1000) / 1000)
}

/// How often each test kills.
fn rounds(default: u64) -> u64 {
    std::env::var("CRASH_ROUNDS").map_or(default, |rounds| rounds.parse().expect("CRASH_ROUNDS is a number"))
}

/// Sets all values to `n`, and one of two others, of which it deletes the other one.
fn plan(n: u64) -> Plan {
    let key = |name: &str| Key::new(name).unwrap();
    let value = ConfigValue::new(json!(n)).unwrap();
    let (set, delete) = if n.is_multiple_of(2) { ("even", "odd") } else { ("odd", "even") };
    let wide = (0..WIDTH).map(|at| Mutation::set(&key(&format!("value-{at}")), &value));
    let others = [Mutation::delete(&key(delete)), Mutation::set(&key(set), &value)];
    Plan::new(wide.chain(others).collect::<Vec<_>>()).unwrap()
}

fn name(n: u64) -> String {
    format!("plan-{n}")
}

/// Whether the plan is rolled back after it was applied.
fn goes_back(n: u64) -> bool {
    n % 4 == 3
}

/// Which plan's values are stored: all of them, and nothing else.
async fn state<B: ConfigBatch>(storage: &Storage<B>) -> Option<u64> {
    let found: BTreeMap<Key, ConfigValue> = storage.list_configs().await.unwrap();
    let n = found.values().next()?.as_u64().unwrap();
    assert!(found.values().all(|value| value.as_u64() == Some(n)), "a plan is applied in part: {found:?}");
    let other = if n.is_multiple_of(2) { "even" } else { "odd" };
    assert!(found.len() == WIDTH + 1 && found.contains_key(other), "a plan is applied in part");
    Some(n)
}

/// Says what it is about to do and what it has done, without end.
async fn apply_all<B: ConfigBatch>(
    storage: &Storage<B>,
    first: u64,
    mut say: impl FnMut(&str, u64),
) -> gateway_storage::Result<()> {
    for n in first.. {
        say("apply", n);
        let applied = storage.apply_plan(name(n), &plan(n), &ApplyOptions::default()).await?;
        assert_eq!(applied, Applied::Applied, "nobody applied it before");
        say("applied", n);
        if goes_back(n) {
            say("roll back", n);
            let back = storage.rollback_plan(name(n), &RollbackOptions::default()).await?;
            assert_eq!(back, Rollback::RolledBack);
            say("rolled back", n);
        }
    }
    Ok(())
}

/// The process that is killed: it applies all plans from this one on, or only this one, when it is told to.
pub(crate) fn applier(url: &str, n: u64, only: bool) {
    async fn on<B: Open + ConfigBatch>(url: &str, n: u64, only: bool) {
        let storage = open::<B>(url).await;
        if only {
            say(&format!("open {n}"));
            std::io::stdin().read_line(&mut String::new()).unwrap();
            storage.apply_plan(name(n), &plan(n), &ApplyOptions::default()).await.unwrap();
            return say(&format!("applied {n}"));
        }
        apply_all(&storage, n, |word, n| say(&format!("{word} {n}"))).await.unwrap();
    }
    runtime().block_on(async {
        match url.split_once(':').unwrap().0 {
            "file" => on::<gateway_storage::File>(url, n, only).await,
            #[cfg(feature = "redis")]
            "redis" => on::<gateway_storage::Redis>(url, n, only).await,
            #[cfg(feature = "postgres")]
            "postgres" => on::<gateway_storage::Postgres>(url, n, only).await,
            #[cfg(feature = "mongodb")]
            "mongodb" => on::<gateway_storage::MongoDb>(url, n, only).await,
            other => panic!("no backend for {other}"),
        }
    });
}

async fn open<B: Open>(url: &str) -> Storage<B> {
    Storage::new(B::open(url.try_into().unwrap()).await.expect("the store opens at once after a crash"))
}

/// A server that was just started may still be loading what it has.
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
pub(crate) async fn open_when_ready<B: Open>(url: &str) -> Storage<B> {
    for _ in 0..600 {
        match B::open(url.try_into().unwrap()).await {
            Ok(backend) => return Storage::new(backend),
            Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("the server is not ready after a minute")
}

/// How sure it is what the store holds after a kill.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sight {
    /// Nobody else is at it.
    Exact,
    /// A server may still be about to do what it was told.
    Late,
    /// What was begun is finished by the next one who applies a plan.
    Staged,
}

/// What must be there, told by what was heard.
#[derive(Default)]
pub(crate) struct Expected {
    /// What the last plan that was settled left.
    settled: Option<u64>,
    /// What that plan replaced.
    before: Option<u64>,
    heard: u64,
}

impl Expected {
    pub(crate) fn hear(&mut self, line: &str) {
        let (word, n) = line.rsplit_once(' ').unwrap();
        let n = n.parse().unwrap();
        self.heard += 1;
        match word {
            "applied" => self.settle(n),
            "rolled back" => self.settled = self.before,
            _ => {}
        }
    }

    fn settle(&mut self, n: u64) {
        (self.before, self.settled) = (self.settled, Some(n));
    }

    /// Compares the store with what was heard last, and finishes what was begun.
    pub(crate) async fn check<B: ConfigBatch>(
        &mut self,
        storage: &Storage<B>,
        last: &str,
        sight: Sight,
    ) -> bool {
        let (word, n) = last.rsplit_once(' ').unwrap();
        let n: u64 = n.parse().unwrap();
        let mut was_in_the_middle = false;
        let apply = async || storage.apply_plan(name(n), &plan(n), &ApplyOptions::default()).await.unwrap();
        let roll_back = async || storage.rollback_plan(name(n), &RollbackOptions::default()).await.unwrap();
        match word {
            "apply" if sight == Sight::Staged => {
                was_in_the_middle = apply().await == Applied::Applied;
                self.settle(n);
            }
            "apply" => {
                let found = state(storage).await;
                assert!(found == self.settled || found == Some(n), "{last}: found {found:?}");
                let again = apply().await;
                was_in_the_middle = found != Some(n);
                let wanted = if was_in_the_middle { Applied::Applied } else { Applied::Replayed };
                let may_be_late = sight == Sight::Late && was_in_the_middle;
                assert!(again == wanted || may_be_late, "{last}: {again:?}, and {found:?} was found");
                self.settle(n);
            }
            "roll back" => {
                if sight != Sight::Staged {
                    let found = state(storage).await;
                    assert!(found == Some(n) || found == self.before, "{last}: found {found:?}");
                }
                let again = roll_back().await;
                let is_back = matches!(again, Rollback::RolledBack | Rollback::AlreadyRolledBack);
                assert!(is_back, "{last}: {again:?}");
                self.settled = self.before;
            }
            _ => assert_eq!(state(storage).await, self.settled, "{last}: what was acknowledged is lost"),
        }
        assert_eq!(state(storage).await, self.settled, "{last}");
        // Once.
        if self.settled == Some(n) {
            assert_eq!(apply().await, Applied::Replayed, "{last}");
            assert_eq!(state(storage).await, self.settled, "{last}");
        }
        let filter = AuditFilter::default().with_key(&Key::new(&name(n)).unwrap());
        let filter = filter.with_status(AuditStatus::Committed);
        let committed: Vec<_> = storage.audit_plans(filter).try_collect().await.unwrap();
        let applied = committed.iter().filter(|entry| entry.action == PlanAction::Apply).count();
        assert_eq!(applied, 1, "{last}: it was applied so often");
        was_in_the_middle
    }
}

/// Kills the process that applies. It lives at most so many microseconds after its first word.
fn kill_processes<B: Open + ConfigBatch>(
    url: &str,
    default: u64,
    longest: u64,
    sight: Sight,
    later: impl Fn(),
) {
    let (runtime, rounds, mut expected, mut undone) = (runtime(), rounds(default), Expected::default(), 0);
    for round in 0..rounds {
        let first = (round * 1_000_000).to_string();
        let delay = delay(round, longest);
        let lines = run_and_kill(&["--applier", url, &first], delay);
        lines.iter().for_each(|line| expected.hear(line));
        let last = lines.last().expect("it was heard");
        later();
        runtime.block_on(async {
            let storage = open::<B>(url).await;
            undone += u64::from(expected.check(&storage, last, sight).await);
            storage.close().await.unwrap();
        });
    }
    println!("{rounds} kills, {} lines heard, {undone} plans were not applied when it died", expected.heard);
    assert!(expected.heard > rounds * 2, "the process was killed before it did anything");
}

/// Kills the server under a process that applies.
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
fn kill_servers<B: Open + ConfigBatch>(
    url: &str,
    default: u64,
    longest: u64,
    sight: Sight,
    mut kill: impl FnMut(),
    mut restart: impl FnMut(),
    later: impl Fn(),
) {
    use std::sync::{Arc, Mutex};

    let (runtime, rounds, mut expected, mut undone) = (runtime(), rounds(default), Expected::default(), 0);
    for round in 0..rounds {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let storage = runtime.block_on(open_when_ready::<B>(url));
        let task = runtime.spawn({
            let (storage, lines) = (storage.clone(), lines.clone());
            async move {
                let say = |word: &str, n: u64| lines.lock().unwrap().push(format!("{word} {n}"));
                apply_all(&storage, round * 1_000_000, say).await
            }
        });
        std::thread::sleep(delay(round, longest));
        kill();
        let ended = runtime.block_on(task).expect("it does not panic");
        ended.expect_err("the server is dead");
        restart();
        let lines = lines.lock().unwrap();
        lines.iter().for_each(|line| expected.hear(line));
        later();
        runtime.block_on(async {
            drop(storage.close().await);
            let storage = open_when_ready::<B>(url).await;
            undone += u64::from(expected.check(&storage, lines.last().expect("it began"), sight).await);
            storage.close().await.unwrap();
        });
    }
    println!(
        "{rounds} kills of the server, {} lines, {undone} plans were not applied when it died",
        expected.heard
    );
    assert!(expected.heard > rounds * 2, "the server was killed before it did anything");
}

pub(crate) fn on_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("file:{}", folder.path().join("store").display());
    kill_processes::<gateway_storage::File>(&url, 40, FAST, Sight::Exact, || ());
}

#[cfg(feature = "redis")]
pub(crate) const REDIS: &[&str] = &["--appendfsync", "always"];

#[cfg(feature = "redis")]
pub(crate) fn on_redis() {
    let server = crate::servers::redis::Server::start(REDIS);
    kill_processes::<gateway_storage::Redis>(&server.url(), 40, FAST, Sight::Late, || ());
}

#[cfg(feature = "redis")]
pub(crate) fn on_redis_that_dies() {
    let server = std::cell::RefCell::new(crate::servers::redis::Server::start(REDIS));
    let url = server.borrow().url();
    kill_servers::<gateway_storage::Redis>(
        &url,
        8,
        FAST,
        Sight::Exact,
        || server.borrow_mut().kill(),
        || server.borrow_mut().restart(),
        || (),
    );
}

#[cfg(feature = "postgres")]
pub(crate) fn on_postgres() {
    let server = crate::servers::postgres::Server::start(&[]);
    kill_processes::<gateway_storage::Postgres>(&server.url(), 15, 2 * FAST, Sight::Late, || ());
}

#[cfg(feature = "postgres")]
pub(crate) fn on_postgres_that_dies() {
    let server = std::cell::RefCell::new(crate::servers::postgres::Server::start(&[]));
    let url = server.borrow().url();
    kill_servers::<gateway_storage::Postgres>(
        &url,
        6,
        FAST,
        Sight::Exact,
        || server.borrow_mut().kill_nine(),
        || server.borrow_mut().restart(),
        || (),
    );
}

/// A set of one member, which ends the transactions of those that are gone sooner than it would by itself, after a minute.
#[cfg(feature = "mongodb")]
pub(crate) fn replica_set() -> crate::servers::mongodb::ReplicaSet {
    let set = crate::servers::mongodb::ReplicaSet::start(1);
    set.members[0]
        .ask("admin", mongodb::bson::doc! { "setParameter": 1, "transactionLifetimeLimitSeconds": 2 });
    set
}

/// What a server does a minute after it heard the last of a process.
#[cfg(feature = "mongodb")]
pub(crate) fn end_sessions(server: &crate::servers::mongodb::Server) {
    server.ask("admin", mongodb::bson::doc! { "killAllSessions": [] });
}

/// What ten seconds do.
#[cfg(feature = "mongodb")]
pub(crate) fn end_lease(server: &crate::servers::mongodb::Server) {
    let change = mongodb::bson::doc! { "q": {}, "u": { "$unset": { "lease": 1 } }, "multi": true };
    server.ask("plans", mongodb::bson::doc! { "update": "meta", "updates": [change] });
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb() {
    let set = replica_set();
    kill_processes::<gateway_storage::MongoDb>(
        &format!("{}&deadline=60s", set.url("plans")),
        10,
        10 * FAST,
        Sight::Late,
        || end_sessions(&set.members[0]),
    );
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_that_dies() {
    let set = std::cell::RefCell::new(replica_set());
    let url = format!("{}&deadline=60s", set.borrow().url("plans"));
    let restart = || {
        set.borrow_mut().members[0].restart();
        set.borrow().primary();
    };
    let kill = || set.borrow_mut().members[0].kill();
    kill_servers::<gateway_storage::MongoDb>(&url, 3, 10 * FAST, Sight::Exact, kill, restart, || ());
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_alone() {
    let server = crate::servers::mongodb::Server::start(&[]);
    let url = server.url("plans").replace("deadline=10s", "deadline=60s");
    kill_processes::<gateway_storage::MongoDb>(&url, 10, 10 * FAST, Sight::Staged, || end_lease(&server));
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_alone_that_dies() {
    let server = std::cell::RefCell::new(crate::servers::mongodb::Server::start(&[]));
    let url = server.borrow().url("plans").replace("deadline=10s", "deadline=60s");
    let (kill, restart) = (|| server.borrow_mut().kill(), || server.borrow_mut().restart());
    let later = || end_lease(&server.borrow());
    kill_servers::<gateway_storage::MongoDb>(&url, 3, 10 * FAST, Sight::Staged, kill, restart, later);
}
