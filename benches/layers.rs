//! The cost of each layer: a read on `Memory`, which never waits, under each of them.
//!
//! `cargo bench --bench layers` prints a table. The layers are measured alternately, 2000 calls at a time;
//! the figures are medians of these samples.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use gateway_storage::{
    Backend, CredentialStore, Either, File, Key, Memory, Storage,
    layer::{Layered, Limit, Retry, Stack, Timeout},
    one_of,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

const SAMPLES: usize = 300;
const CALLS: u32 = 2_000;

type Contender<'c> = (&'c str, Box<dyn Fn() + 'c>);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let storage = Storage::<Memory>::open("memory:").now_or_never().unwrap().unwrap();
    let id = Key::new("alice").unwrap();
    storage.set_credential(&id, json!({ "access_token": "x" })).now_or_never().unwrap().unwrap();
    let bare = || storage.clone();

    println!("Nothing installed.\n");
    contest(vec![
        contender("no layer", bare(), &id),
        contender("Instrument", bare().instrumented(), &id),
        contender("Timeout", bare().layer(Timeout::default()), &id),
        contender("Retry", bare().layer(Retry::new()), &id),
        contender("Limit", bare().layer(Limit::new(64)), &id),
        contender("the whole stack", stacked(bare()), &id),
    ]);

    println!("\nOne of several backends, and a scope.\n");
    let memory = || storage.backend().clone();
    let of_two = Storage::new(Either::<File, Memory>::Right(memory()));
    let of_three = Storage::<one_of!(File, File, Memory)>::new(Either::Right(Either::Right(memory())));
    let scoped = storage.scoped("acme").unwrap();
    scoped.set_credential(&id, json!({ "access_token": "x" })).now_or_never().unwrap().unwrap();
    contest(vec![
        contender("Memory", bare(), &id),
        contender("one of two", of_two, &id),
        contender("one of three", of_three, &id),
        contender("scoped", scoped, &id),
    ]);

    let _page = PrometheusBuilder::new().install_recorder().unwrap();
    println!("\nWith a Prometheus recorder.\n");
    contest(vec![contender("no layer", bare(), &id), contender("Instrument", bare().instrumented(), &id)]);

    let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO);
    tracing::subscriber::set_global_default(subscriber).unwrap();
    println!("\nWith a Prometheus recorder, and a subscriber that keeps spans, at INFO.\n");
    contest(vec![contender("no layer", bare(), &id), contender("Instrument", bare().instrumented(), &id)]);
}

fn stacked<B: Backend>(storage: Storage<B>) -> Storage<Layered<Stack, B>> {
    let stack = Stack::new()
        .limit(Limit::new(64))
        .retry(Retry::new())
        .timeout(Timeout::default())
        .instrument(storage.backend());
    storage.layer(stack)
}

fn contender<'c, B: CredentialStore>(name: &'c str, storage: Storage<B>, id: &'c Key) -> Contender<'c> {
    let lap = move || {
        for _ in 0..CALLS {
            drop(black_box(storage.get_credential(black_box(id)).now_or_never()));
        }
    };
    (name, Box::new(lap))
}

fn contest(contenders: Vec<Contender<'_>>) {
    let mut samples: Vec<Vec<Duration>> = vec![Vec::new(); contenders.len()];
    for _ in 0..SAMPLES {
        for ((_, lap), samples) in contenders.iter().zip(&mut samples) {
            let begun = Instant::now();
            lap();
            samples.push(begun.elapsed() / CALLS);
        }
    }
    println!("| | one call | more than without |\n|---|---:|---:|");
    let bare = samples[0].clone();
    for ((name, _), samples) in contenders.iter().zip(samples) {
        let more = samples.iter().zip(&bare).map(|(with, without)| with.saturating_sub(*without)).collect();
        println!("| {name} | {:?} | {:?} |", median(samples), median(more));
    }
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}
