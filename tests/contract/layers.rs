//! The cost of the layers, and `Retry` over a hundred thousand calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use gateway_storage::{
    CredentialStore, Error, ErrorKind, Key, Memory, Outcome, Result, Storage, UsageStore,
    layer::{Call, Count, Fault, Layer, Limit, Receiver, Retry, Stack, Timeout, time_left},
};
use serde_json::json;
use testkit::workload::stacked;

async fn memory() -> Storage<Memory> {
    Storage::open("memory:").await.unwrap()
}

fn eager() -> Retry {
    Retry::new().tries(10).pauses(Duration::ZERO, Duration::ZERO)
}

/// Every increment with `Ok` was counted once, and every other one at most once, as its outcome says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_never_applied_twice() {
    const TASKS: i64 = 10;
    const EACH: i64 = 10_000;
    let bare = memory().await;
    let fault = Fault::seeded(11).errors(0.1).lost_requests(0.05).lost_replies(0.05);
    let storage = bare.clone().layer(fault).layer(eager());
    let (ok, refused, unknown) = <(Arc<AtomicI64>, Arc<AtomicI64>, Arc<AtomicI64>)>::default();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (storage, ok) = (storage.clone(), ok.clone());
            let (refused, unknown) = (refused.clone(), unknown.clone());
            tokio::spawn(async move {
                let key = Key::new(&format!("task-{task}")).unwrap();
                let (mut sure, mut maybe, mut last) = (0, 0, 0);
                for _ in 0..EACH {
                    match storage.increment_usage(&key, "n", 1).await {
                        Ok(total) => {
                            sure += 1;
                            assert!(
                                total > last && (sure..=sure + maybe).contains(&total),
                                "the total of another key"
                            );
                            last = total;
                        }
                        Err(error) if error.outcome() == Outcome::Unknown => maybe += 1,
                        Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                }
                ok.fetch_add(sure, Ordering::Relaxed);
                unknown.fetch_add(maybe, Ordering::Relaxed);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let [ok, refused, unknown] = [ok, refused, unknown].map(|count| count.load(Ordering::Relaxed));
    let counted: i64 =
        bare.list_usage().await.unwrap().into_values().flat_map(|of| of.into_iter()).map(|(_, n)| n).sum();
    assert_eq!(ok + refused + unknown, TASKS * EACH);
    assert!((ok..=ok + unknown).contains(&counted), "{ok} ok, {unknown} unknown, {counted} counted");
    // About half of the unknown ones were applied. Neither share is near 0, so the test can fail.
    let applied = counted - ok;
    assert!(unknown > 8_000 && applied > unknown / 3 && applied < unknown * 2 / 3, "{applied} of {unknown}");
    assert!(refused < 10, "calls that were not applied are retried: {refused}");
}

/// Within the default budget.
#[tokio::test]
async fn repeatable_operations_succeed_through_faults() {
    let bare = memory().await;
    let asked = Count::default();
    let fault = Fault::seeded(12).errors(0.1).lost_requests(0.05).lost_replies(0.05);
    let storage = bare.clone().layer(asked.clone()).layer(fault).layer(eager().overwriting());
    for n in 0..10_000 {
        let name = format!("k{}", n % 100);
        storage.set_config(&name, json!(n)).await.unwrap();
        assert_eq!(storage.get_config(&name).await.unwrap().value(), &json!(n));
    }
    // 5 % of the replies were lost after the write was applied.
    assert!(asked.of("set_config") > 10_400, "{}", asked.of("set_config"));
    let bare = bare.layer(Fault::seeded(12).errors(0.1).lost_requests(0.05).lost_replies(0.05));
    let mut failed = 0;
    for n in 0..1_000 {
        failed += u32::from(bare.set_config("k", json!(n)).await.is_err());
    }
    assert!((150..250).contains(&failed), "one in five fails without the layer: {failed}");
}

/// A backend whose calls wait in a queue of its own, and leave it before the deadline.
#[derive(Clone)]
struct Queue {
    wait: Duration,
    deadline: Duration,
}

impl Layer for Queue {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        match tokio::time::timeout(time_left(self.deadline), tokio::time::sleep(self.wait)).await {
            Ok(()) => call.run(on).await,
            Err(_) => Err(Error::new(ErrorKind::Timeout, "withdrawn")),
        }
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }
}

/// With the order and the timeout of `docs/layers.md`.
#[tokio::test(start_paused = true)]
async fn the_stack_returns_the_error_of_the_backend() {
    let queue = Queue { wait: Duration::from_secs(60), deadline: Duration::ZERO };
    let storage = memory().await.layer(queue);
    let stack = Stack::new()
        .limit(Limit::new(64))
        .retry(Retry::new())
        .timeout(Timeout::new(Duration::from_secs(5)))
        .instrument(storage.backend());
    let storage = storage.layer(stack);
    let begun = tokio::time::Instant::now();
    let error = storage.increment_usage("a", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error}");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(4_500) && took < Duration::from_secs(5), "{took:?}");

    let begun = tokio::time::Instant::now();
    let error = storage.with_deadline(Duration::from_secs(1)).increment_usage("a", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error}");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(1), "{took:?}");

    let slower = storage.with_deadline(Duration::from_secs(90));
    assert_eq!(slower.increment_usage("a", "n", 1).await.unwrap(), 1);
}

/// The allocations of a thousand calls, after warming up.
fn allocations<F: Future>(call: impl Fn() -> F) -> u64 {
    for _ in 0..100 {
        call().now_or_never().expect("it never waits");
    }
    let counted = allocation_counter::measure(|| {
        for _ in 0..1_000 {
            call().now_or_never().expect("it never waits");
        }
    });
    counted.count_total
}

#[test]
fn no_layer_allocates() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let storage = memory().now_or_never().unwrap();
    let (id, field) = (Key::new("a").unwrap(), Key::new("n").unwrap());
    storage.set_credential(&id, json!({ "token": "x" })).now_or_never().unwrap().unwrap();
    storage.increment_usage(&id, &field, 1).now_or_never().unwrap().unwrap();

    let backend = storage.backend().clone();
    let read = allocations(|| CredentialStore::get_credential(&backend, &id));
    let write = allocations(|| UsageStore::increment_usage(&backend, &id, &field, 1));
    let missing = Key::new("missing").unwrap();
    assert!(
        allocations(|| CredentialStore::get_credential(&backend, &missing)) >= 1_000,
        "errors allocate, so the counter works"
    );

    fn check<B: CredentialStore + UsageStore>(
        what: &str,
        storage: &Storage<B>,
        id: &Key,
        field: &Key,
        direct: (u64, u64),
    ) {
        assert_eq!(allocations(|| storage.get_credential(id)), direct.0, "{what}: get_credential");
        assert_eq!(
            allocations(|| storage.increment_usage(id, field, 1)),
            direct.1,
            "{what}: increment_usage"
        );
    }
    let direct = (read, write);
    check("no layer", &storage, &id, &field, direct);
    check("Instrument", &storage.clone().instrumented(), &id, &field, direct);
    check("Retry", &storage.clone().layer(Retry::new()), &id, &field, direct);
    check("Limit", &storage.clone().layer(Limit::new(1)), &id, &field, direct);
    check("Timeout", &storage.clone().layer(Timeout::default()), &id, &field, direct);
    check("the stack", &stacked(storage), &id, &field, direct);
}

/// The sizes of the futures in bytes, which grow with each layer. A task that is spawned for a request holds
/// one.
#[test]
fn futures_have_these_sizes() {
    let storage = memory().now_or_never().unwrap();
    let key = Key::new("a").unwrap();
    fn sizes<B: CredentialStore + UsageStore>(storage: &Storage<B>, key: &Key) -> [usize; 3] {
        let credential = json!({}).try_into().unwrap();
        [
            size_of_val(&storage.get_credential(key)),
            size_of_val(&storage.backend().set_credential(key, &credential)),
            size_of_val(&storage.increment_usage(key, key, 1)),
        ]
    }
    let found = [
        ("no layer", sizes(&storage, &key)),
        ("Timeout", sizes(&storage.clone().layer(Timeout::default()), &key)),
        ("Retry", sizes(&storage.clone().layer(Retry::new()), &key)),
        ("Limit", sizes(&storage.clone().layer(Limit::new(1)), &key)),
        ("Instrument", sizes(&storage.clone().instrumented(), &key)),
        ("the stack", sizes(&stacked(storage), &key)),
    ];
    let pinned = [
        ("no layer", [72, 32, 128]),
        ("Timeout", [312, 296, 416]),
        ("Retry", [456, 432, 560]),
        ("Limit", [344, 320, 432]),
        ("Instrument", [312, 296, 416]),
        ("the stack", [1216, 1192, 1320]),
    ];
    assert_eq!(found, pinned, "get_credential, set_credential, increment_usage");
}
