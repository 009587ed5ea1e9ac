//! A worker: a process that opens the store and refreshes tokens as it is told on its standard input.

use std::{
    io::{BufRead, Write},
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use gateway_storage::{Open, Storage};
use serde_json::json;

use crate::{
    places::id,
    refresh_one::{Ended, Job, Refreshable, refresh_one},
};

/// The number of refreshes of a worker that run at a time.
pub(crate) const AT_A_TIME: usize = 50;

/// How a worker's refresh ended.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// The number of the account.
    pub(crate) account: u64,
    pub(crate) ended: Ended,
    /// What the caller waited.
    pub(crate) time: Duration,
}

impl Done {
    /// From the line that [`run`] wrote.
    pub(crate) fn read(line: &str) -> Self {
        let mut words = line.splitn(5, ' ').skip(1);
        let mut word = || words.next().expect("a word");
        let (account, time) = (word().parse().unwrap(), Duration::from_micros(word().parse().unwrap()));
        Self { account, time, ended: Ended::read(word(), word()) }
    }
}

/// Refreshes each token once. All workers want the same ones at a time, each in an order of its own.
pub(crate) async fn refresh_all<B: Refreshable>(
    storage: &Storage<B>,
    job: &Job,
    round: u64,
    accounts: u64,
    report: impl Fn(Done),
) {
    let mut order: Vec<_> = (0..accounts).collect();
    order.chunks_mut(AT_A_TIME).for_each(fastrand::shuffle);
    let refreshes = stream::iter(order).map(|account| async move {
        let (begun, id) = (Instant::now(), id(account));
        let (storage, job) = (storage.clone(), job.clone());
        let refresh = tokio::spawn(async move { refresh_one(&storage, &id, round, &job).await });
        Done { account, ended: refresh.await.expect("no panic"), time: begun.elapsed() }
    });
    refreshes.buffer_unordered(AT_A_TIME).for_each(async |done| report(done)).await;
}

/// One line with one `write`: it arrives even if this process is killed right after it.
fn report(line: &str) {
    static PIPE: Mutex<()> = Mutex::new(());
    let _alone = PIPE.lock();
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).expect("the parent reads the pipe");
}

/// Reports when a write took so long that a lease of this time may have ended before it was renewed: this
/// process was paused, or the machine or the store is busy.
async fn watch<B: Refreshable>(storage: Storage<B>, job: Job) {
    loop {
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
        // What it returns does not matter. The store may be cut.
        drop(
            storage
                .set_config(format!("watch-{}", job.client), json!(begun.elapsed().as_micros() as u64))
                .await,
        );
        if begun.elapsed() > job.lease / 3 {
            report(&format!("paused {}", begun.elapsed().as_millis()));
        }
    }
}

/// The program: `URL PROVIDER CLIENT LEASE WAIT`, with times in milliseconds. Each line of its input is
/// `ROUND ACCOUNTS`. It ends with its input.
pub(crate) fn run(arguments: &[String]) {
    let [url, provider, client, lease, wait] = arguments else { panic!("five arguments") };
    let time = |text: &String| Duration::from_millis(text.parse().unwrap());
    let job = Job {
        provider: provider.clone(),
        client: client.clone(),
        lease: time(lease),
        wait: time(wait),
        is_protected: crate::is_protected(),
    };
    match url.split_once(':').unwrap().0 {
        #[cfg(feature = "redis")]
        "redis" => serve::<gateway_storage::Redis>(url, job),
        #[cfg(feature = "postgres")]
        "postgres" => serve::<gateway_storage::Postgres>(url, job),
        #[cfg(feature = "mongodb")]
        "mongodb" => serve::<gateway_storage::MongoDb>(url, job),
        other => serve_none(other, job),
    }
}

fn serve_none(scheme: &str, _: Job) {
    panic!("no backend for {scheme}");
}

fn serve<B: Open + Refreshable>(url: &str, job: Job) {
    let runtime = crate::runtime();
    let storage = runtime
        .block_on(async { Storage::new(B::open(url.try_into().unwrap()).await.expect("the store opens")) });
    runtime.spawn(watch(storage.clone(), job.clone()));
    report("end 0");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (round, accounts) = line.split_once(' ').unwrap();
        let (round, accounts) = (round.parse().unwrap(), accounts.parse().unwrap());
        runtime.block_on(refresh_all(&storage, &job, round, accounts, |Done { account, ended, time }| {
            report(&format!("done {account} {} {ended}", time.as_micros()));
        }));
        report(&format!("end {round}"));
    }
}
