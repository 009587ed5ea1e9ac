//! Daily budgets of three clients: reserves an estimate before each request, and settles the difference after
//! it. Then deletes the records of the year before.
//!
//!     cargo run --example budget                                           # in a temporary directory
//!     cargo run --example budget -- file:./data                            # in a directory that stays
//!     cargo run --example budget --features full -- redis://localhost/9    # on any backend with counters

use std::{env, error::Error, time::Duration};

use futures_util::TryStreamExt;
use gateway_storage::{Result, Storage, UsageStore, list::ListOptions, one_of, usage::Within};
use tokio::{task::JoinSet, time::sleep};

#[cfg(not(feature = "full"))]
type Backend = one_of!(gateway_storage::File, gateway_storage::Memory);
#[cfg(feature = "full")]
type Backend = one_of!(
    gateway_storage::File,
    gateway_storage::Memory,
    gateway_storage::MongoDb,
    gateway_storage::Postgres,
    gateway_storage::Redis
);

const CLIENTS: [&str; 3] = ["acme", "globex", "initech"];
const TASKS_OF_EACH: u64 = 8;
const REQUESTS_OF_EACH: u64 = 10;

/// The most tokens that a client can spend on a day.
const DAILY: i64 = 40_000;

/// The most tokens that a request can use.
const ESTIMATE: i64 = 1_000;

const TODAY: &str = "2026-11-30";

/// What became of the requests of a client.
#[derive(Default)]
struct Requests {
    counted: u64,
    refused: u64,
    tokens: i64,
}

/// One request. None: it was refused.
async fn request<B: UsageStore>(storage: &Storage<B>, client: &str, number: u64) -> Result<Option<i64>> {
    // The day is first, so that one call deletes a day, a month or a year.
    let key = format!("{TODAY}/{client}");
    if let Within::Refused(_) = storage.increment_within(&key, "tokens", ESTIMATE, DAILY).await? {
        return Ok(None);
    }
    let used = ask_upstream(number).await;
    storage.increment_usage(&key, "tokens", used - ESTIMATE).await?;
    Ok(Some(used))
}

/// The upstream, simulated: the tokens that the request used.
async fn ask_upstream(number: u64) -> i64 {
    sleep(Duration::from_millis(number % 5)).await;
    300 + (number * 397 % 700) as i64
}

/// All requests of a client, by several tasks at once.
async fn spend<B: UsageStore>(storage: &Storage<B>, client: &'static str) -> Result<Requests> {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS_OF_EACH {
        let storage = storage.clone();
        tasks.spawn(async move {
            let mut spent = Vec::new();
            for number in 0..REQUESTS_OF_EACH {
                spent.push(request(&storage, client, task * REQUESTS_OF_EACH + number).await?);
            }
            Ok::<_, gateway_storage::Error>(spent)
        });
    }
    let mut requests = Requests::default();
    for spent in tasks.join_all().await {
        for tokens in spent? {
            match tokens {
                Some(tokens) => {
                    (requests.counted, requests.tokens) = (requests.counted + 1, requests.tokens + tokens)
                }
                None => requests.refused += 1,
            }
        }
    }
    Ok(requests)
}

/// Reads the totals from the store, and compares them with what the tasks have seen.
async fn prove<B: UsageStore>(storage: &Storage<B>, seen: &[(&str, Requests)]) -> Result<(), Box<dyn Error>> {
    println!("client    counted  refused  tokens  of the budget");
    for (client, Requests { counted, refused, tokens }) in seen {
        let total = storage.get_counter(format!("{TODAY}/{client}"), "tokens").await?;
        println!("{client:8}  {counted:7}  {refused:7}  {total:6}  {:12} %", total * 100 / DAILY);
        if total != *tokens || total > DAILY {
            return Err(format!("{client}: the requests used {tokens}, the store counted {total}").into());
        }
        // A request is refused only if the estimate does not fit.
        if *refused > 0 && total <= DAILY - TASKS_OF_EACH as i64 * ESTIMATE {
            return Err(format!("{client}: a request was refused although it fitted").into());
        }
    }
    println!("no client spent more than its budget of {DAILY} tokens");
    Ok(())
}

/// The number of records whose keys begin with this text.
async fn count<B: UsageStore>(storage: &Storage<B>, prefix: &str) -> Result<usize> {
    let records = storage.stream_usage(ListOptions::default().with_prefix(prefix));
    records.try_fold(0, |count, _| async move { Ok(count + 1) }).await
}

/// Deletes what is not needed any more. A gateway does this in a task, once a day.
async fn clean_up<B: UsageStore>(storage: &Storage<B>) -> Result<()> {
    for client in CLIENTS {
        storage.increment_usage(format!("2025-12-31/{client}"), "tokens", 12_000).await?;
    }
    let old = count(storage, "2025-").await?;
    let deleted = storage.reset_usage_prefix("2025-").await?;
    let left = count(storage, "2025-").await?;
    println!("records of 2025: {old}, deleted: {deleted}, left: {left}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let url = env::args().nth(1).unwrap_or_else(|| format!("file:{}/data", temporary.path().display()));
    let storage = Storage::<Backend>::open(url).await?;
    // Of an earlier run.
    storage.reset_usage_prefix(TODAY).await?;

    let (acme, globex, initech) =
        tokio::join!(spend(&storage, CLIENTS[0]), spend(&storage, CLIENTS[1]), spend(&storage, CLIENTS[2]));
    let seen = [(CLIENTS[0], acme?), (CLIENTS[1], globex?), (CLIENTS[2], initech?)];
    prove(&storage, &seen).await?;
    clean_up(&storage).await?;
    storage.close().await?;
    Ok(())
}
