//! Many processes and tasks spend the same budgets, and one of the processes is killed. No budget is exceeded,
//! a call is refused only if it would be, and the counter is what the calls together say.
//!
//! This program runs itself as the workers. A long run:
//!
//! `BUDGET_LIMIT=1000000 BUDGET_PROCESSES=8 cargo test --all-features --test budgets`
//!
//! `BUDGET_SEED=N` repeats the amounts.

mod worker;

use std::{
    env,
    fmt::Debug,
    io::Read,
    process::{Child, Command, Stdio},
    str::FromStr,
};

use gateway_storage::{File, Memory, Open, Storage, UsageStore};
use tokio::runtime::{Builder, Runtime};
use worker::{BUDGETS, FIELD, Spent};

/// The name and the function of each test.
const TESTS: &[testkit::runner::Test] = &[
    ("tasks_on_memory", tasks_on_memory),
    ("processes_on_file", processes_on_file),
    #[cfg(feature = "redis")]
    ("processes_on_redis", || processes::<gateway_storage::Redis>("Redis", &testkit::servers::redis())),
    #[cfg(feature = "postgres")]
    ("processes_on_postgres", || {
        processes::<gateway_storage::Postgres>("Postgres", &testkit::servers::postgres());
    }),
    #[cfg(feature = "mongodb")]
    ("processes_on_mongodb", || {
        processes::<gateway_storage::MongoDb>("MongoDb", &testkit::servers::mongodb());
    }),
];

fn main() {
    let mut arguments = env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "--worker").is_some() {
        return worker::run(&arguments.collect::<Vec<_>>());
    }
    testkit::runner::run(TESTS, arguments);
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A number of a long run, from the environment.
fn number<T: FromStr<Err: Debug>>(name: &str, usual: T) -> T {
    env::var(name).map_or(usual, |number| number.parse().expect("a number"))
}

fn seed() -> u64 {
    let seed = number("BUDGET_SEED", fastrand::u64(..1 << 32));
    println!("BUDGET_SEED={seed}");
    seed
}

fn tasks_on_memory() {
    let limit = number("BUDGET_LIMIT", 100_000);
    runtime().block_on(async {
        let storage = Storage::<Memory>::open("memory:").await.unwrap();
        let spent = worker::spend(&storage, limit, seed()).await;
        check("Memory", &storage, limit, &[spent], true).await;
    });
}

fn processes_on_file() {
    let folder = tempfile::tempdir().unwrap();
    processes::<File>("File", &format!("file:{}", folder.path().display()));
}

/// All workers spend all budgets. Then they do it once more with other budgets, and one of them is killed.
fn processes<B: Open + UsageStore>(what: &str, url: &str) {
    let (limit, count) = (number("BUDGET_LIMIT", 8_000), number("BUDGET_PROCESSES", 8));
    let (runtime, mut seed) = (runtime(), seed());
    let storage = runtime.block_on(async { Storage::new(B::open(url.try_into().unwrap()).await.unwrap()) });
    for killed in [false, true] {
        let workers: Vec<Child> = (0..count)
            .map(|_| {
                seed += 1;
                start(url, limit, seed)
            })
            .collect();
        let ended = workers.into_iter().enumerate().map(|(at, mut worker)| {
            if killed && at == 0 {
                wait_for_a_part::<B>(&runtime, &storage, limit);
                worker.kill().unwrap();
            }
            let mut text = String::new();
            worker.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            worker.wait().unwrap();
            (!(killed && at == 0)).then(|| text.parse().expect("the worker reports what it spent"))
        });
        let spent: Vec<Spent> = ended.flatten().collect();
        runtime.block_on(async {
            check(what, &storage, limit, &spent, !killed).await;
            storage.reset_usage_prefix("budget").await.unwrap();
        });
    }
    runtime.block_on(storage.close()).unwrap();
}

fn start(url: &str, limit: i64, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--worker", url, &limit.to_string(), &seed.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until about a third of a budget is spent.
fn wait_for_a_part<B: UsageStore>(runtime: &Runtime, storage: &Storage<B>, limit: i64) {
    runtime.block_on(async {
        while storage.get_counter(BUDGETS[0], FIELD).await.unwrap() < limit / 3 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
}

/// Compares the counters with what was spent, which is all of it unless a worker was killed.
async fn check<B: UsageStore>(what: &str, on: &Storage<B>, limit: i64, spent: &[Spent], is_all: bool) {
    let (mut calls, mut refused) = (0, 0);
    for (at, budget) in BUDGETS.into_iter().enumerate() {
        let total = on.get_counter(budget, FIELD).await.unwrap();
        let sum: i64 = spent.iter().map(|spent| spent.sums[at]).sum();
        // A worker stops when not even 1 fits, and gives nothing back after that.
        assert_eq!(total, limit, "{what}: {budget} is spent to its end, and not beyond");
        assert!(if is_all { sum == total } else { sum <= total }, "{what}: {sum} of {total} in {budget}");
    }
    for one in spent {
        calls += one.calls;
        refused += one.refused;
    }
    println!("{what}: {calls} calls, {refused} refused, {} of {limit}", BUDGETS.len());
}
