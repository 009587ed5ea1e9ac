//! Compares our backend with its peers in one run: the time that each needs for the same operations.
//!
//! In each sample all contenders run the same number of operations, one right after the other, so that all
//! see the machine in the same state. The table at the end has the medians of the samples, and percentiles of
//! the calls of all samples.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::Criterion;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

pub(crate) struct Contest {
    pub(crate) runtime: Arc<Runtime>,
    wanted: String,
    lines: Vec<String>,
}

/// The duration of some operations together, and of each.
#[derive(Default)]
pub(crate) struct Lap {
    elapsed: Duration,
    calls: Vec<Duration>,
}

/// A name, and a function that runs this many operations.
pub(crate) type Contender<'c> = (&'static str, Box<dyn Fn(u64) -> Lap + 'c>);

impl Contest {
    pub(crate) fn new(title: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
        let lines = vec![
            format!("\n{title}\n"),
            "| operation | contender | one operation | ratio | p50 | p99 | slowest |".into(),
            "|---|---|---:|---:|---:|---:|---:|".into(),
        ];
        Self { runtime: Arc::new(runtime), wanted, lines }
    }

    /// Measures a row. The first contender is ours; the ratio is how many times faster it is than the other.
    pub(crate) fn row(&mut self, name: &str, contenders: Vec<Contender<'_>>) {
        if !name.contains(&self.wanted) {
            return;
        }
        let mut samples: Vec<Vec<Lap>> = contenders.iter().map(|_| Vec::new()).collect();
        let mut round = 0;
        Criterion::default()
            .sample_size(20)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(4))
            .without_plots()
            .bench_function(name, |bencher| {
                bencher.iter_custom(|count| {
                    // A different contender is first each time, because the machine may be colder for it.
                    round += 1;
                    let mut all = Duration::ZERO;
                    for at in (0..contenders.len()).map(|at| (at + round) % contenders.len()) {
                        let lap = contenders[at].1(count);
                        all += lap.elapsed;
                        samples[at].push(lap);
                    }
                    all
                });
            });
        let each = |lap: &Lap| lap.elapsed.as_secs_f64() / lap.calls.len() as f64;
        for (at, (peer, _)) in contenders.iter().enumerate() {
            let ratios = samples[0].iter().zip(&samples[at]).map(|(ours, theirs)| each(theirs) / each(ours));
            let ratio = if at == 0 { String::new() } else { format!("{:.2}x", median(ratios.collect())) };
            let mut calls: Vec<Duration> = samples[at].iter().flat_map(|lap| &lap.calls).copied().collect();
            calls.sort_unstable();
            let part = |part: f64| shown(calls[((calls.len() - 1) as f64 * part) as usize]);
            let one = shown(Duration::from_secs_f64(median(samples[at].iter().map(each).collect())));
            let (p50, p99, slowest) = (part(0.5), part(0.99), part(1.0));
            self.lines.push(format!("| {name} | {peer} | {one} | {ratio} | {p50} | {p99} | {slowest} |"));
        }
    }

    pub(crate) fn print(self) {
        println!("{}", self.lines.join("\n"));
    }
}

/// Runs `count` operations, shared among this many tasks.
pub(crate) fn on_tasks<F, T>(
    runtime: &Runtime,
    tasks: u64,
    count: u64,
    operation: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Lap
where
    F: Future<Output = T> + Send + 'static,
{
    let start = Instant::now();
    let work: Vec<_> = (0..tasks.min(count))
        .map(|task| {
            let operation = operation.clone();
            runtime.spawn(async move {
                let mut calls = Vec::with_capacity((count / tasks + 1) as usize);
                for n in (task..count).step_by(tasks as usize) {
                    let begun = Instant::now();
                    black_box(operation(n).await);
                    calls.push(begun.elapsed());
                }
                calls
            })
        })
        .collect();
    let calls = runtime.block_on(async {
        let mut calls = Vec::with_capacity(count as usize);
        for task in work {
            calls.append(&mut task.await.unwrap());
        }
        calls
    });
    Lap { elapsed: start.elapsed(), calls }
}

/// As [`on_tasks`], for operations that block, with one thread per task.
#[allow(dead_code, reason = "only some benchmarks have such contenders")]
pub(crate) fn on_threads<T>(tasks: u64, count: u64, operation: impl Fn(u64) -> T + Sync) -> Lap {
    let start = Instant::now();
    let calls = std::thread::scope(|scope| {
        let operation = &operation;
        let work: Vec<_> = (0..tasks.min(count))
            .map(|task| {
                scope.spawn(move || {
                    let mut calls = Vec::with_capacity((count / tasks + 1) as usize);
                    for n in (task..count).step_by(tasks as usize) {
                        let begun = Instant::now();
                        black_box(operation(n));
                        calls.push(begun.elapsed());
                    }
                    calls
                })
            })
            .collect();
        work.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    Lap { elapsed: start.elapsed(), calls }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn shown(time: Duration) -> String {
    format!("{time:.1?}")
}

/// An OAuth credential of some 600 bytes of JSON.
pub(crate) fn credential() -> Map<String, Value> {
    let fields = json!({
        "access_token": "x".repeat(218), "refresh_token": "y".repeat(103), "client_id": "z".repeat(72),
        "client_secret": "GOCSPX-0123456789", "expiry": "2026-12-31T23:59:59Z", "project_id": "project-0001",
        "token_uri": "https://oauth2.googleapis.com/token", "scope": "cloud-platform",
    });
    fields.as_object().unwrap().clone()
}

/// A number of tasks, for the name of a row.
pub(crate) fn of(tasks: u64) -> String {
    if tasks == 1 { "1 task".into() } else { format!("{tasks} tasks") }
}
