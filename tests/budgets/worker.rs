//! A worker: 64 tasks that reserve, settle, and spend until nothing fits.

use std::{fmt, str::FromStr, sync::Mutex};

use gateway_storage::{Open, Storage, UsageStore, usage::Within};

/// The budgets, and the counter of each.
pub(crate) const BUDGETS: [&str; 3] = ["budget/a", "budget/b", "budget/c"];
pub(crate) const FIELD: &str = "tokens";

const TASKS: u64 = 64;

/// What the tasks of a worker spent.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    /// Of each budget.
    pub(crate) sums: [i64; BUDGETS.len()],
    pub(crate) calls: u64,
    pub(crate) refused: u64,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.sums;
        write!(f, "{a} {b} {c} {} {}", self.calls, self.refused)
    }
}

impl FromStr for Spent {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers: Vec<i64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let &[a, b, c, calls, refused] = numbers.as_slice() else { panic!("five numbers and not {text:?}") };
        Ok(Self { sums: [a, b, c], calls: calls as u64, refused: refused as u64 })
    }
}

/// Spends all budgets with many tasks at once.
pub(crate) async fn spend<B: UsageStore>(storage: &Storage<B>, limit: i64, seed: u64) -> Spent {
    let spent: &'static Mutex<Spent> = Box::leak(Box::default());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let storage = storage.clone();
        tasks.spawn(async move { spend_one(&storage, limit, seed ^ task << 32, spent).await });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    std::mem::take(&mut spent.lock().unwrap())
}

async fn spend_one<B: UsageStore>(storage: &Storage<B>, limit: i64, seed: u64, spent: &Mutex<Spent>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut open: Vec<usize> = (0..BUDGETS.len()).collect();
    // The largest amount that may still fit.
    let mut most = [limit / 50; BUDGETS.len()];
    while !open.is_empty() {
        let at = open[random.usize(..open.len())];
        let amount = random.i64(1..=most[at].max(1));
        let within = storage.increment_within(BUDGETS[at], FIELD, amount, limit).await.unwrap();
        match within {
            Within::Counted(total) => {
                assert!(total <= limit, "a total of {total} is within {limit}");
                // Half of the reservations were too large.
                let back = if amount > 1 && random.bool() { random.i64(1..amount) } else { 0 };
                if back > 0 {
                    let total = storage.increment_usage(BUDGETS[at], FIELD, -back).await.unwrap();
                    assert!(total <= limit, "a total of {total} is within {limit}");
                }
                spent.lock().unwrap().sums[at] += amount - back;
            }
            Within::Refused(total) => {
                assert!(total + amount > limit, "{amount} is refused at {total} of {limit}");
                most[at] = amount / 2;
                if amount == 1 {
                    open.retain(|budget| *budget != at);
                }
            }
        }
        let mut spent = spent.lock().unwrap();
        spent.calls += 1;
        spent.refused += u64::from(!within.is_counted());
    }
}

/// The program: `URL LIMIT SEED`. It prints what it spent.
pub(crate) fn run(arguments: &[String]) {
    let [url, limit, seed] = arguments else { panic!("three arguments") };
    let (limit, seed) = (limit.parse().unwrap(), seed.parse().unwrap());
    match url.split_once(':').unwrap().0 {
        "file" => serve::<gateway_storage::File>(url, limit, seed),
        #[cfg(feature = "redis")]
        "redis" => serve::<gateway_storage::Redis>(url, limit, seed),
        #[cfg(feature = "postgres")]
        "postgres" => serve::<gateway_storage::Postgres>(url, limit, seed),
        #[cfg(feature = "mongodb")]
        "mongodb" => serve::<gateway_storage::MongoDb>(url, limit, seed),
        other => panic!("no backend for {other}"),
    }
}

fn serve<B: Open + UsageStore>(url: &str, limit: i64, seed: u64) {
    crate::runtime().block_on(async {
        let storage = Storage::new(B::open(url.try_into().unwrap()).await.expect("the store opens"));
        println!("{}", spend(&storage, limit, seed).await);
        storage.close().await.unwrap();
    });
}
