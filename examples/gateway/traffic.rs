//! Simulates requests: each reads the configuration, picks a credential, calls an upstream and counts usage.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gateway_storage::{
    Increment, Key, OptionalExt, Result, Storage, UsageStore, lease::Leases, revision::Conditional,
};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    credential::{OAuth, Pool},
    options::Options,
    served::{FIELDS, Served, timed},
};

const MODELS: [&str; 3] = ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.5-flash-lite"];
const CLIENTS: u64 = 20;

/// The configuration's key, and the time between the operator's changes.
const CONFIG: &str = "gateway";
const CHANGE_EVERY: Duration = Duration::from_millis(5);

/// The simulated clock starts here and advances by this much per request.
const NEW_YEAR_2026: Duration = Duration::from_secs(1_767_225_600);
const SECONDS_PER_REQUEST: u64 = 20;
const CENTURY: u64 = 100 * 365 * 24 * 60 * 60;

/// The configuration that an operator may change at any time.
#[derive(Deserialize, Serialize)]
struct Live {
    revision: u64,
    default_model: String,
    max_retries: u64,
}

impl Live {
    fn of_revision(revision: u64) -> Self {
        let default_model = MODELS[(revision % MODELS.len() as u64) as usize].to_owned();
        Self { revision, default_model, max_retries: 2 + revision % 3 }
    }
}

/// The state that all requests of one run share.
pub(crate) struct Traffic<B> {
    storage: Storage<B>,
    pool: Pool,
    requests: u64,
    concurrency: u64,
    /// The number of requests counted before this run: the clock continues from there.
    before: u64,
    started: AtomicU64,
    finished: AtomicU64,
    over: AtomicBool,
}

impl<B: Conditional + Leases + UsageStore> Traffic<B> {
    pub(crate) fn new(storage: Storage<B>, pool: Pool, options: &Options, before: u64) -> Self {
        Self {
            storage,
            pool,
            requests: options.requests,
            concurrency: options.concurrency.min(options.requests),
            before,
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The number of finished requests, and of all requests.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.finished.load(Relaxed), self.requests)
    }

    pub(crate) async fn serve(self: Arc<Self>) -> Result<Served> {
        let last: Option<Live> = self.storage.get_config_as(CONFIG).await.optional()?;
        let revision = last.map_or(0, |live| live.revision).wrapping_add(1);
        self.storage.set_config_as(CONFIG, &Live::of_revision(revision)).await?;
        let operator = tokio::spawn(self.clone().operate(revision));

        let started = Instant::now();
        let mut workers = JoinSet::new();
        for _ in 0..self.concurrency {
            workers.spawn(self.clone().work());
        }
        let mut served = Served::default();
        for of_worker in workers.join_all().await {
            served.add(of_worker);
        }
        served.elapsed = started.elapsed();
        served.on_storage.sort_unstable();
        served.whole.sort_unstable();

        self.over.store(true, Relaxed);
        served.add(operator.await.expect("the operator does not panic"));
        Ok(served)
    }

    /// Changes the configuration until the traffic is over.
    async fn operate(self: Arc<Self>, first: u64) -> Served {
        let mut served = Served { changes: 1, ..Served::default() };
        let mut revision = first;
        while !self.over.load(Relaxed) {
            sleep(CHANGE_EVERY).await;
            revision = revision.wrapping_add(1);
            match self.storage.set_config_as(CONFIG, &Live::of_revision(revision)).await {
                Ok(()) => served.changes += 1,
                Err(error) => served.fail(error),
            }
        }
        served
    }

    /// Serves one request after the other until none is left.
    async fn work(self: Arc<Self>) -> Served {
        let mut served = Served::default();
        loop {
            let number = self.started.fetch_add(1, Relaxed);
            if number >= self.requests {
                return served;
            }
            if let Err(error) = self.request(number, &mut served).await {
                served.fail(error);
            }
            self.finished.fetch_add(1, Relaxed);
        }
    }

    async fn request(&self, number: u64, served: &mut Served) -> Result<()> {
        let (begun, mut on_storage) = (Instant::now(), Duration::ZERO);
        let now = clock(self.before.saturating_add(number));

        let live: Live = timed(&mut on_storage, self.storage.get_config_as(CONFIG)).await?;
        served.revisions.insert(live.revision);

        // The request's number is the seed, so that every run serves the same requests.
        let mut random = fastrand::Rng::with_seed(number);
        let model = match random.u8(..100) {
            0..45 => MODELS[0],
            45..70 => MODELS[1],
            70..80 => MODELS[2],
            // This client names no model.
            _ => &live.default_model,
        };
        let client = random.u64(..CLIENTS);
        let used = [1, random.i64(20..4000), random.i64(1..1500)];

        for attempt in 0..=live.max_retries {
            let member = self.pool.pick(number + attempt);
            let (oauth, refreshed) = member.fresh(&self.storage, now, &mut on_storage).await?;
            served.refreshes += u64::from(refreshed);
            if !ask_upstream(&oauth, &mut random).await {
                served.retries += 1;
                continue;
            }
            let records = [
                Key::new("total")?,
                Key::new(&format!("model:{model}"))?,
                Key::new(&format!("client:{client:02}"))?,
                Key::new(&format!("day:{}", day(now)))?,
                member.usage.clone(),
            ];
            let increments: Vec<Increment> = records
                .iter()
                .flat_map(|record| FIELDS.iter().zip(used).map(|(field, n)| Increment::new(record, field, n)))
                .collect();
            // Fifteen counters in one round trip.
            let totals = timed(&mut on_storage, self.storage.increment_many(&increments)).await?;
            served.count(&increments, &totals);
            // This gateway treats a request that is counted in part as a failure.
            totals.complete()?;

            served.answered += 1;
            served.on_storage.push(on_storage);
            served.whole.push(begun.elapsed());
            return Ok(());
        }
        served.refused += 1;
        Ok(())
    }
}

/// A simulated upstream, which takes some milliseconds and refuses one request in fifty.
async fn ask_upstream(_with: &OAuth, random: &mut fastrand::Rng) -> bool {
    sleep(Duration::from_millis(random.u64(1..=5))).await;
    random.u8(..50) > 0
}

/// The simulated time at this request.
fn clock(number: u64) -> SystemTime {
    UNIX_EPOCH + NEW_YEAR_2026 + Duration::from_secs(number.saturating_mul(SECONDS_PER_REQUEST).min(CENTURY))
}

/// `2026-01-01`
fn day(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned()
}
