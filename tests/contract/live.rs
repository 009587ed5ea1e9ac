//! `Live`: configuration that follows the store, and watches of layered and scoped stores.

use std::{pin::pin, time::Duration};

use futures_util::{FutureExt, StreamExt};
use gateway_storage::{
    ConfigStore, ErrorKind, Key, Memory, Result, Storage,
    layer::{Call, Layer, Receiver},
    watch::{Event, Live, Watch, WatchOptions},
};
use serde::Deserialize;
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

async fn store() -> Storage<Memory> {
    Storage::open("memory:").await.unwrap()
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Limits {
    requests: u32,
    models: Vec<String>,
}

/// The kind of the problem.
fn problem<T>(live: &Live<T>) -> Option<ErrorKind> {
    live.problem().map(|problem| problem.kind())
}

/// Waits for a change.
async fn changed<T>(live: &mut Live<T>) {
    tokio::time::timeout(Duration::from_secs(20), live.changed()).await.expect("it changes").unwrap();
}

/// Waits a while, and asserts that nothing changes.
async fn unchanged<T>(live: &mut Live<T>) {
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(live.changed().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_value_is_followed() {
    let storage = store().await;
    let missing = storage.live_config::<u32>("retries").await.unwrap_err();
    assert_eq!((missing.kind(), missing.key().map(Key::as_str)), (ErrorKind::NotFound, Some("retries")));
    storage.set_config("retries", json!(3)).await.unwrap();
    let mut live = storage.live_config::<u32>("retries").await.unwrap();
    assert_eq!((*live.get(), problem(&live)), (3, None));
    let before = live.get();
    storage.set_config("retries", json!(4)).await.unwrap();
    changed(&mut live).await;
    assert_eq!((*before, *live.get(), *live.get_owned()), (3, 4, 4));
    // The same value, another key and another kind change nothing.
    storage.set_config("retries", json!(4)).await.unwrap();
    storage.set_config("others", json!(4)).await.unwrap();
    storage.set_credential("retries", json!({})).await.unwrap();
    unchanged(&mut live).await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_value_changes_nothing_and_is_told() {
    let storage = store().await;
    storage.set_config("limits", json!({ "requests": 1 })).await.unwrap();
    let mut live = storage.live_config::<Limits>("limits").await.unwrap();
    storage.set_config("limits", json!({ "requests": "s3cret" })).await.unwrap();
    changed(&mut live).await;
    let told = live.problem().unwrap();
    assert_eq!((told.kind(), told.path()), (ErrorKind::InvalidValue, Some("requests")));
    assert!(!format!("{told} {told:?} {live:?} {:?}", live.get()).contains("s3cret"));
    assert_eq!(live.get().requests, 1);
    // The old value again, which was parsed.
    storage.set_config("limits", json!({ "requests": 1 })).await.unwrap();
    changed(&mut live).await;
    assert_eq!((live.get().requests, problem(&live)), (1, None));
    storage.delete_config("limits").await.unwrap();
    changed(&mut live).await;
    assert_eq!(live.get().requests, 1);
    assert_eq!(live.problem().unwrap().kind(), ErrorKind::NotFound);
    storage.set_config("limits", json!({ "requests": 2 })).await.unwrap();
    changed(&mut live).await;
    assert_eq!((live.get().requests, problem(&live)), (2, None));
    assert_eq!(storage.live_config::<u32>("limits").await.unwrap_err().kind(), ErrorKind::InvalidValue);
}

#[tokio::test(start_paused = true)]
async fn a_missing_value_has_a_default() {
    let storage = store().await;
    let mut live = storage.live_config_or_default::<Limits>("limits").await.unwrap();
    assert_eq!(*live.get(), Limits::default());
    storage.set_config("limits", json!({ "requests": 2 })).await.unwrap();
    changed(&mut live).await;
    assert_eq!(live.get().requests, 2);
    storage.delete_config("limits").await.unwrap();
    changed(&mut live).await;
    assert_eq!((live.get().requests, problem(&live)), (0, None));
}

#[tokio::test(start_paused = true)]
async fn many_values_are_one_struct() {
    let storage = store().await.scoped("acme").unwrap();
    storage.set_config("limits.requests", json!(5)).await.unwrap();
    storage.set_config("limit", json!("another")).await.unwrap();
    let mut live = storage.live_configs::<Limits>("limits.").await.unwrap();
    assert_eq!(*live.get(), Limits { requests: 5, models: vec![] });
    let both = [("limits.requests", json!(6)), ("limits.models", json!(["a"]))];
    storage.set_configs(both).await.unwrap().complete().unwrap();
    changed(&mut live).await;
    assert_eq!(*live.get(), Limits { requests: 6, models: vec!["a".into()] });
    storage.set_config("limit", json!("other")).await.unwrap();
    unchanged(&mut live).await;
    storage.set_config("limits.models", json!([1])).await.unwrap();
    changed(&mut live).await;
    assert_eq!(live.problem().unwrap().path(), Some("models[0]"));
    assert_eq!(live.get().models, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn clones_share_the_value_and_each_is_told() {
    let storage = store().await;
    storage.set_config("a", json!(1)).await.unwrap();
    let mut one = storage.live_config::<u32>("a").await.unwrap();
    let mut two = one.clone();
    storage.set_config("a", json!(2)).await.unwrap();
    changed(&mut one).await;
    drop(one);
    changed(&mut two).await;
    storage.set_config("a", json!(3)).await.unwrap();
    changed(&mut two).await;
    assert_eq!(*two.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_age_is_that_of_the_last_event_and_closing_ends_it() {
    let storage = store().await;
    storage.set_config("a", json!(1)).await.unwrap();
    let mut live = storage.live_config::<u32>("a").await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(live.age() <= Duration::from_secs(5), "{:?}", live.age());
    }
    storage.close().await.unwrap();
    changed(&mut live).await;
    assert_eq!(live.problem().unwrap().kind(), ErrorKind::Closed);
    assert_eq!(live.changed().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(*live.get(), 1);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(live.age() >= Duration::from_secs(30));
}

/// Counts reads of values, and refuses them while told to.
#[derive(Clone, Default)]
struct Refusing(Arc<(AtomicBool, AtomicU64)>);

impl Layer for Refusing {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        if C::OPERATION.name == "get_config" {
            self.0.1.fetch_add(1, Ordering::SeqCst);
            if self.0.0.load(Ordering::SeqCst) {
                return Err(gateway_storage::Error::new(ErrorKind::Unavailable, "refused"));
            }
        }
        call.run(on).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_is_repeated_until_it_succeeds() {
    let refusing = Refusing::default();
    let (is_refused, reads) =
        (|refused| refusing.0.0.store(refused, Ordering::SeqCst), || refusing.0.1.load(Ordering::SeqCst));
    let storage = store().await.layer(refusing.clone());
    storage.set_config("a", json!(1)).await.unwrap();
    is_refused(true);
    let late = storage.live_config::<u32>("a").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    is_refused(false);
    let mut live = storage.live_config::<u32>("a").await.unwrap();
    is_refused(true);
    storage.set_config("a", json!(2)).await.unwrap();
    unchanged(&mut live).await;
    is_refused(false);
    changed(&mut live).await;
    assert_eq!((*live.get(), problem(&live)), (2, None));
    // Many changes at once are not as many reads.
    let before = reads();
    for n in 0..1000 {
        storage.set_config("a", json!(n)).await.unwrap();
    }
    while *live.get() != 999 {
        changed(&mut live).await;
    }
    assert!(reads() - before < 10, "{} reads", reads() - before);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_clone() {
    let refusing = Refusing::default();
    let storage = store().await.layer(refusing.clone());
    storage.set_config("a", json!(1)).await.unwrap();
    let live = storage.live_config::<u32>("a").await.unwrap();
    drop(live.clone());
    storage.set_config("a", json!(2)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*live.get(), 2);
    drop(live);
    let before = refusing.0.1.load(Ordering::SeqCst);
    storage.set_config("a", json!(3)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(refusing.0.1.load(Ordering::SeqCst), before);
}

/// A scope is told of its own records, and of none of others.
#[tokio::test(start_paused = true)]
async fn a_scope_is_told_of_its_own_records() {
    let storage = store().await;
    let acme = storage.scoped("acme").unwrap();
    let mut events = pin!(acme.watch(WatchOptions::default()));
    let resync = events.next().await.unwrap().unwrap();
    assert!(matches!(resync, Event::Resync { .. }));
    storage.scoped("globex").unwrap().set_config("a", json!(1)).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    acme.set_config("b", json!(1)).await.unwrap();
    let told = events.next().await.unwrap().unwrap();
    assert!(matches!(&told, Event::Changed { key: Some(key), .. } if key.as_str() == "b"), "{told:?}");
    // From the first cursor, by another handle.
    let options = WatchOptions::default().with_from(resync.cursor().clone());
    let mut later = pin!(acme.watch(options));
    let told = later.next().await.unwrap().unwrap();
    assert!(matches!(&told, Event::Changed { key: Some(key), .. } if key.as_str() == "b"), "{told:?}");
    assert!(matches!(later.next().await, Some(Ok(Event::Idle { .. }))), "it has caught up");
}

/// A runtime that ends takes the task of a watch with it, and a watch in another one begins it again.
#[test]
fn a_watch_outlives_the_runtime_in_which_another_one_began() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let storage = first.block_on(store());
    let mut one = Box::pin(storage.watch(WatchOptions::default()));
    first.block_on(async { one.next().await.unwrap().unwrap() });
    let mut two = Box::pin(storage.watch(WatchOptions::default()));
    second.block_on(async { two.next().await.unwrap().unwrap() });
    drop(first);
    second.block_on(async {
        storage.set_config("a", json!(1)).await.unwrap();
        for events in [&mut one, &mut two] {
            let told =
                tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("it is told");
            assert!(matches!(told, Some(Ok(Event::Changed { .. }))), "{told:?}");
        }
        // Both wait for the source, which has to run here.
        for events in [&mut one, &mut two] {
            let told =
                tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("it goes on");
            assert!(matches!(told, Some(Ok(Event::Idle { .. } | Event::Resync { .. }))), "{told:?}");
        }
    });
}

/// A generic application needs no more than the capabilities.
#[tokio::test(start_paused = true)]
async fn an_application_can_be_generic() {
    async fn limits<B: ConfigStore + Watch>(storage: &Storage<B>) -> Result<Live<Limits>> {
        storage.live_config_or_default("limits").await
    }
    assert_eq!(limits(&store().await).await.unwrap().get().requests, 0);
}
