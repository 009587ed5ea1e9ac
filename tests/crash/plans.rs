//! Plans that are applied and rolled back one after the other: after a kill each is applied as a whole or not
//! at all, and applying it again completes it, exactly once.

use std::{collections::BTreeMap, time::Duration};

use futures_util::TryStreamExt;
use gateway_storage::{
    ConfigBatch, ConfigValue, Key, Open, Storage,
    plan::{
        Applied, ApplyOptions, AuditFilter, AuditStatus, Mutation, Plan, PlanAction, Rollback,
        RollbackOptions,
    },
};
use serde_json::json;

use crate::{report, run_and_kill, runtime};

/// The number of config values that a plan sets.
const VALUES: usize = 20;

/// The time that the fastest backends need for some plans, in microseconds.
const FAST: u64 = 40_000;

/// The delay before a kill: spread evenly up to `longest`, for few rounds and for many.
fn delay(round: u64, longest: u64) -> Duration {
    Duration::from_micros(longest * ((round * 617 + 300) % 1000) / 1000)
}

/// The number of kills per test.
pub(crate) fn rounds(default: u64) -> u64 {
    std::env::var("CRASH_ROUNDS").map_or(default, |rounds| rounds.parse().expect("CRASH_ROUNDS is a number"))
}

/// Sets all values to `n`, and also one of `even` and `odd`, and deletes the other of these two.
fn plan(n: u64) -> Plan {
    let key = |name: &str| Key::new(name).unwrap();
    let value = ConfigValue::new(json!(n)).unwrap();
    let (set, delete) = if n.is_multiple_of(2) { ("even", "odd") } else { ("odd", "even") };
    let values = (0..VALUES).map(|at| Mutation::set(&key(&format!("value-{at}")), &value));
    let others = [Mutation::delete(&key(delete)), Mutation::set(&key(set), &value)];
    Plan::new(values.chain(others).collect::<Vec<_>>()).unwrap()
}

fn name(n: u64) -> String {
    format!("plan-{n}")
}

/// Whether the plan is rolled back after it is applied.
fn is_rolled_back(n: u64) -> bool {
    n % 4 == 3
}

/// The number of the plan whose values are stored. Panics unless all of them are stored, and no others.
async fn state<B: ConfigBatch>(storage: &Storage<B>) -> Option<u64> {
    let found: BTreeMap<Key, ConfigValue> = storage.list_configs().await.unwrap();
    let n = found.values().next()?.as_u64().unwrap();
    assert!(found.values().all(|value| value.as_u64() == Some(n)), "a plan is applied in part: {found:?}");
    let other = if n.is_multiple_of(2) { "even" } else { "odd" };
    assert!(found.len() == VALUES + 1 && found.contains_key(other), "a plan is applied in part");
    Some(n)
}

/// Applies plans without end, and reports each operation before and after it.
async fn apply_all<B: ConfigBatch>(
    storage: &Storage<B>,
    first: u64,
    mut report: impl FnMut(&str, u64),
) -> gateway_storage::Result<()> {
    for n in first.. {
        report("apply", n);
        let applied = storage.apply_plan(name(n), &plan(n), &ApplyOptions::default()).await?;
        assert_eq!(applied, Applied::Applied, "it was applied before");
        report("applied", n);
        if is_rolled_back(n) {
            report("roll back", n);
            let back = storage.rollback_plan(name(n), &RollbackOptions::default()).await?;
            assert_eq!(back, Rollback::RolledBack);
            report("rolled back", n);
        }
    }
    Ok(())
}

/// The process that is killed. It applies all plans from `n` on, or `only` plan `n` once a line is on stdin.
pub(crate) fn applier(url: &str, n: u64, only: bool) {
    async fn on<B: Open + ConfigBatch>(url: &str, n: u64, only: bool) {
        let storage = open::<B>(url).await;
        if only {
            report(&format!("open {n}"));
            std::io::stdin().read_line(&mut String::new()).unwrap();
            storage.apply_plan(name(n), &plan(n), &ApplyOptions::default()).await.unwrap();
            return report(&format!("applied {n}"));
        }
        apply_all(&storage, n, |word, n| report(&format!("{word} {n}"))).await.unwrap();
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

/// Opens the store of a server that was just started and may still be loading its data.
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

/// How an interrupted plan becomes visible after a kill.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Visible {
    /// At once: no process or server is still working on it.
    Now,
    /// Perhaps later: the server may still execute the last command that it received.
    Later,
    /// When the next plan is applied, which first completes the interrupted one.
    Staged,
}

/// The state that the store must have, computed from the reported lines.
#[derive(Default)]
pub(crate) struct Expected {
    /// The number of the plan whose values must be stored.
    current: Option<u64>,
    /// The number of the plan whose values that plan replaced.
    before: Option<u64>,
    lines: u64,
}

impl Expected {
    pub(crate) fn read(&mut self, line: &str) {
        let (word, n) = line.rsplit_once(' ').unwrap();
        let n = n.parse().unwrap();
        self.lines += 1;
        match word {
            "applied" => self.applied(n),
            "rolled back" => self.current = self.before,
            _ => {}
        }
    }

    fn applied(&mut self, n: u64) {
        (self.before, self.current) = (self.current, Some(n));
    }

    /// Compares the store with the last reported line, and completes the operation that was interrupted.
    /// Returns true if that was a plan that had not been applied.
    pub(crate) async fn check<B: ConfigBatch>(
        &mut self,
        storage: &Storage<B>,
        last: &str,
        visible: Visible,
    ) -> bool {
        let (word, n) = last.rsplit_once(' ').unwrap();
        let n: u64 = n.parse().unwrap();
        let mut was_not_applied = false;
        let apply = async || storage.apply_plan(name(n), &plan(n), &ApplyOptions::default()).await.unwrap();
        let roll_back = async || storage.rollback_plan(name(n), &RollbackOptions::default()).await.unwrap();
        match word {
            "apply" if visible == Visible::Staged => {
                was_not_applied = apply().await == Applied::Applied;
                self.applied(n);
            }
            "apply" => {
                let found = state(storage).await;
                assert!(found == self.current || found == Some(n), "{last}: found {found:?}");
                let again = apply().await;
                was_not_applied = found != Some(n);
                let wanted = if was_not_applied { Applied::Applied } else { Applied::Replayed };
                let may_be_late = visible == Visible::Later && was_not_applied;
                assert!(again == wanted || may_be_late, "{last}: {again:?}, and {found:?} was found");
                self.applied(n);
            }
            "roll back" => {
                if visible != Visible::Staged {
                    let found = state(storage).await;
                    assert!(found == Some(n) || found == self.before, "{last}: found {found:?}");
                }
                let again = roll_back().await;
                let is_back = matches!(again, Rollback::RolledBack | Rollback::AlreadyRolledBack);
                assert!(is_back, "{last}: {again:?}");
                self.current = self.before;
            }
            _ => assert_eq!(state(storage).await, self.current, "{last}: an acknowledged plan is lost"),
        }
        assert_eq!(state(storage).await, self.current, "{last}");
        if self.current == Some(n) {
            assert_eq!(apply().await, Applied::Replayed, "{last}");
            assert_eq!(state(storage).await, self.current, "{last}");
        }
        let filter = AuditFilter::default().with_key(Key::new(&name(n)).unwrap());
        let filter = filter.with_status(AuditStatus::Committed);
        let committed: Vec<_> = storage.audit_plans(filter).try_collect().await.unwrap();
        let applied = committed.iter().filter(|entry| entry.action == PlanAction::Apply).count();
        assert_eq!(applied, 1, "{last}: it was not applied exactly once");
        was_not_applied
    }
}

/// Kills the process that applies plans, at most `longest` microseconds after its first line.
fn kill_processes<B: Open + ConfigBatch>(
    url: &str,
    default: u64,
    longest: u64,
    visible: Visible,
    cleanup: impl Fn(),
) {
    let (runtime, rounds, mut expected, mut unapplied) = (runtime(), rounds(default), Expected::default(), 0);
    for round in 0..rounds {
        let first = (round * 1_000_000).to_string();
        let delay = delay(round, longest);
        let lines = run_and_kill(&["--applier", url, &first], delay);
        lines.iter().for_each(|line| expected.read(line));
        let last = lines.last().expect("it reported a line");
        cleanup();
        runtime.block_on(async {
            let storage = open::<B>(url).await;
            unapplied += u64::from(expected.check(&storage, last, visible).await);
            storage.close().await.unwrap();
        });
    }
    println!("{rounds} kills, {} lines read, {unapplied} plans were not applied at the kill", expected.lines);
    assert!(expected.lines > rounds * 2, "the process was killed before it did anything");
}

/// Kills the server while a process applies plans.
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
fn kill_servers<B: Open + ConfigBatch>(
    url: &str,
    default: u64,
    longest: u64,
    visible: Visible,
    mut kill: impl FnMut(),
    mut restart: impl FnMut(),
    cleanup: impl Fn(),
) {
    use std::sync::{Arc, Mutex};

    let (runtime, rounds, mut expected, mut unapplied) = (runtime(), rounds(default), Expected::default(), 0);
    for round in 0..rounds {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let storage = runtime.block_on(open_when_ready::<B>(url));
        let task = runtime.spawn({
            let (storage, lines) = (storage.clone(), lines.clone());
            async move {
                let report = |word: &str, n: u64| lines.lock().unwrap().push(format!("{word} {n}"));
                apply_all(&storage, round * 1_000_000, report).await
            }
        });
        std::thread::sleep(delay(round, longest));
        kill();
        let ended = runtime.block_on(task).expect("it does not panic");
        ended.expect_err("the server is dead");
        restart();
        let lines = lines.lock().unwrap();
        lines.iter().for_each(|line| expected.read(line));
        cleanup();
        runtime.block_on(async {
            drop(storage.close().await);
            let storage = open_when_ready::<B>(url).await;
            let last = lines.last().expect("it reported a line");
            unapplied += u64::from(expected.check(&storage, last, visible).await);
            storage.close().await.unwrap();
        });
    }
    println!(
        "{rounds} kills of the server, {} lines, {unapplied} plans were not applied at the kill",
        expected.lines
    );
    assert!(expected.lines > rounds * 2, "the server was killed before it did anything");
}

pub(crate) fn on_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("file:{}", folder.path().join("store").display());
    kill_processes::<gateway_storage::File>(&url, 40, FAST, Visible::Now, || ());
}

#[cfg(feature = "redis")]
pub(crate) const REDIS: &[&str] = &["--appendfsync", "always"];

#[cfg(feature = "redis")]
pub(crate) fn on_redis() {
    let server = testkit::servers::redis::Server::start(REDIS);
    kill_processes::<gateway_storage::Redis>(&server.url(), 40, FAST, Visible::Later, || ());
}

#[cfg(feature = "redis")]
pub(crate) fn on_redis_that_dies() {
    let server = std::cell::RefCell::new(testkit::servers::redis::Server::start(REDIS));
    let url = server.borrow().url();
    kill_servers::<gateway_storage::Redis>(
        &url,
        8,
        FAST,
        Visible::Now,
        || server.borrow_mut().kill(),
        || server.borrow_mut().restart(),
        || (),
    );
}

#[cfg(feature = "postgres")]
pub(crate) fn on_postgres() {
    let server = testkit::servers::postgres::Server::start(&[]);
    kill_processes::<gateway_storage::Postgres>(&server.url(), 15, 2 * FAST, Visible::Later, || ());
}

#[cfg(feature = "postgres")]
pub(crate) fn on_postgres_that_dies() {
    let server = std::cell::RefCell::new(testkit::servers::postgres::Server::start(&[]));
    let url = server.borrow().url();
    kill_servers::<gateway_storage::Postgres>(
        &url,
        6,
        FAST,
        Visible::Now,
        || server.borrow_mut().kill_nine(),
        || server.borrow_mut().restart(),
        || (),
    );
}

/// A replica set of one member, which ends transactions of dead clients after 2 seconds instead of a minute.
#[cfg(feature = "mongodb")]
pub(crate) fn replica_set() -> testkit::servers::mongodb::ReplicaSet {
    let set = testkit::servers::mongodb::ReplicaSet::start(1);
    set.members[0]
        .ask("admin", mongodb::bson::doc! { "setParameter": 1, "transactionLifetimeLimitSeconds": 2 });
    set
}

/// Ends all sessions, as the server would itself a minute after a client died.
#[cfg(feature = "mongodb")]
pub(crate) fn end_sessions(server: &testkit::servers::mongodb::Server) {
    server.ask("admin", mongodb::bson::doc! { "killAllSessions": [] });
}

/// Ends the lease for plans, which would expire by itself after ten seconds.
#[cfg(feature = "mongodb")]
pub(crate) fn end_lease(server: &testkit::servers::mongodb::Server) {
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
        Visible::Later,
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
    kill_servers::<gateway_storage::MongoDb>(&url, 3, 10 * FAST, Visible::Now, kill, restart, || ());
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_alone() {
    let server = testkit::servers::mongodb::Server::start(&[]);
    let url = server.url("plans").replace("deadline=10s", "deadline=60s");
    kill_processes::<gateway_storage::MongoDb>(&url, 10, 10 * FAST, Visible::Staged, || end_lease(&server));
}

#[cfg(feature = "mongodb")]
pub(crate) fn on_mongodb_alone_that_dies() {
    let server = std::cell::RefCell::new(testkit::servers::mongodb::Server::start(&[]));
    let url = server.borrow().url("plans").replace("deadline=10s", "deadline=60s");
    let (kill, restart) = (|| server.borrow_mut().kill(), || server.borrow_mut().restart());
    let cleanup = || end_lease(&server.borrow());
    kill_servers::<gateway_storage::MongoDb>(&url, 3, 10 * FAST, Visible::Staged, kill, restart, cleanup);
}
