//! Many tasks of one process.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use gateway_storage::{Error, File, FileOptions, Memory, Storage};
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::{
    number, places,
    places::{Place, id, print_waits},
    random,
    refresh_one::{Ended, Job, Refreshable, refresh_one},
    runtime,
    worker::{Done, refresh_all},
};

async fn memory() -> Storage<Memory> {
    Storage::open("memory:").await.unwrap()
}

async fn file(folder: &tempfile::TempDir) -> Storage<File> {
    Storage::open(FileOptions::new(folder.path().join("store"))).await.unwrap()
}

/// Some workers, each a task with a job.
async fn work<B: Refreshable>(place: &Place<B>, job: impl Fn(&str) -> Job) -> Vec<Vec<Done>> {
    let workers = (0..number("REFRESH_PROCESSES", 4)).map(|n| {
        let (storage, job, accounts) = (place.storage.clone(), job(&format!("task-{n}")), place.accounts);
        tokio::spawn(async move {
            let done = Mutex::default();
            let report = |one| Vec::push(&mut done.lock().unwrap(), one);
            refresh_all(&storage, &job, 1, accounts, report).await;
            done.into_inner().unwrap()
        })
    });
    join_all(workers).await.into_iter().map(|done| done.expect("no panic")).collect()
}

async fn at_once<B: Refreshable>(what: &str, storage: Storage<B>) {
    let place = Place::new(storage, number("REFRESH_TOKENS", 200)).await;
    place.provider.set_latency(Duration::from_millis(10));
    let done = work(&place, |client| place.job(client)).await;
    place.check_one_each(&done).await;
    print_waits(what, done.concat());
}

pub(crate) fn at_once_on_memory() {
    runtime().block_on(async { at_once("Memory", memory().await).await });
}

pub(crate) fn at_once_on_file() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async { at_once("File", file(&folder).await).await });
}

/// The tests can fail: a token is used twice, and that is seen.
pub(crate) fn unprotected() {
    runtime().block_on(async {
        let place = Place::new(memory().await, 50).await;
        place.provider.set_latency(Duration::from_millis(10));
        work(&place, |client| Job { is_protected: false, ..place.job(client) }).await;
        let (total, uses) = (place.provider.total(), place.provider.take_uses());
        assert!(total.reuses > 0 && !place.check().await.is_empty(), "{total:?}");
        assert_eq!(places::unexplained(&uses, &[].into()) as u64, total.reuses);
    });
}

const CREDENTIALS: u64 = 20;

/// The callers that want the same token at a time.
const TOGETHER: u64 = 10;

/// Counts in the same record until it is told to stop, and returns the count.
async fn count<B: Refreshable>(storage: Storage<B>, id: String, stop: Arc<AtomicBool>) -> u64 {
    let mut counted = 0;
    while !stop.load(Ordering::SeqCst) {
        let add = |mut fields: Map<String, Value>| async {
            let quota = fields["quota"].as_u64().expect("a number");
            fields.insert("quota".to_owned(), (quota + 1).into());
            Ok::<_, Error>(fields)
        };
        storage.update_credential(&id, add).await.unwrap();
        counted += 1;
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    counted
}

/// Callers are dropped at random times, while others count in the same records.
async fn dropped<B: Refreshable>(what: &str, storage: Storage<B>) {
    let (mut random, rounds) =
        (random(), number("REFRESH_CALLERS", 1000_u64).div_ceil(CREDENTIALS * TOGETHER));
    let place = Place::new(storage, CREDENTIALS).await;
    place.provider.set_latency(Duration::from_millis(4));
    let stop = Arc::<AtomicBool>::default();
    let counters: Vec<_> = (0..CREDENTIALS)
        .map(|account| tokio::spawn(count(place.storage.clone(), id(account), stop.clone())))
        .collect();
    let (job, dropped) = (place.job("tasks"), Arc::<AtomicU64>::default());
    for round in 1..=rounds {
        let callers = (0..CREDENTIALS * TOGETHER).map(|n| {
            let (storage, job, dropped) = (place.storage.clone(), job.clone(), dropped.clone());
            let time = Duration::from_micros(random.u64(..40_000));
            tokio::spawn(async move {
                let refreshed = timeout(time, refresh_one(&storage, &id(n / TOGETHER), round, &job)).await;
                dropped.fetch_add(u64::from(refreshed.is_err()), Ordering::SeqCst);
            })
        });
        for caller in join_all(callers).await {
            caller.expect("no panic");
        }
        // One that stays sees the end of what the others began.
        for account in 0..CREDENTIALS {
            let ended = refresh_one(&place.storage, &id(account), round, &job).await;
            let has_token = matches!(ended, Ended::Fresh(_) | Ended::Mine(_) | Ended::Theirs(_));
            assert!(has_token, "round {round}, account {account}: {ended}");
        }
    }
    stop.store(true, Ordering::SeqCst);
    let (total, dropped) = (place.provider.total(), dropped.load(Ordering::SeqCst));
    let mut counts = 0;
    for (account, counter) in (0..).zip(counters) {
        let counted = counter.await.expect("no panic");
        let stored = place.storage.get_credential(id(account)).await.unwrap();
        assert_eq!(stored.fields()["quota"], counted, "account {account}: a count is lost");
        counts += counted;
    }
    assert_eq!((total.grants, total.reuses), (rounds * CREDENTIALS, 0), "grants and reuses");
    assert_eq!(place.check().await, [0; 0]);
    println!("{what}: {dropped} callers dropped, {} tokens refreshed, {counts} counted", total.grants);
    assert!(dropped > rounds, "callers ended before they were dropped");
}

pub(crate) fn dropped_on_memory() {
    runtime().block_on(async { dropped("Memory", memory().await).await });
}

pub(crate) fn dropped_on_file() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async { dropped("File", file(&folder).await).await });
}
