//! A capability outside this crate, on a backend and through a layer outside this crate: all with public
//! items only.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    Backend, BatchFailure, BatchReport, Either, Error, ErrorKind, Key, Outcome, Result, Storage,
    StorageStats, Transaction, Transactional, capability,
    layer::{
        Call, Count, Layer, Layered, LayeredTransaction, Operation, OperationKind, Receiver, Retry, Timeout,
    },
    wrap::{BackendWrapper, Wrapped},
};

/// Labels by key. Its operations have every form that the macro accepts.
#[capability(wrapper = LabelsWrapper)]
#[diagnostic::on_unimplemented(message = "`{Self}` has no labels")]
trait Labels: Backend {
    #[layered(LayeredDraft)]
    type Draft: Draft;

    /// Not an operation: layers forward it.
    #[forward]
    fn capacity(&self) -> usize;

    #[operation(read)]
    fn label(&self, key: &Key) -> impl Future<Output = Result<String>> + Send;

    // Two borrows, one of them in a generic type, and argument names that the expansion also uses.
    #[operation(write, replayable, batch = layer)]
    fn set_labels(&self, layer: &[Key], inner: Cow<'_, str>) -> impl Future<Output = Result<usize>> + Send;

    #[operation(read)]
    fn labels(&self, prefix: &str) -> impl Stream<Item = Result<(Key, String)>> + Send;

    #[operation(control)]
    fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send;
}

/// A label that is written in steps.
#[capability(on = LayeredTransaction, wrapper = DraftWrapper)]
trait Draft: Send + 'static {
    #[operation(write)]
    fn append(&mut self, inner: &str) -> impl Future<Output = Result<()>> + Send;

    #[operation(control)]
    fn publish(self, layer: Key) -> impl Future<Output = Result<()>> + Send;
}

use LayeredTransaction as LayeredDraft;

#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<Key, String>>>);

impl Backend for Shelf {
    fn label(&self) -> &'static str {
        "shelf"
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        Ok(())
    }

    async fn stats(&self) -> Result<StorageStats> {
        Ok(StorageStats::new("shelf"))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl Labels for Shelf {
    type Draft = ShelfDraft;

    fn capacity(&self) -> usize {
        7
    }

    async fn label(&self, key: &Key) -> Result<String> {
        // An await, so that the spawned future holds its borrows across it.
        tokio::task::yield_now().await;
        let found = self.0.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "no label has this key"))
    }

    async fn set_labels(&self, keys: &[Key], label: Cow<'_, str>) -> Result<usize> {
        tokio::task::yield_now().await;
        self.0.lock().unwrap().extend(keys.iter().map(|key| (key.clone(), label.to_string())));
        Ok(keys.len())
    }

    fn labels(&self, prefix: &str) -> impl Stream<Item = Result<(Key, String)>> + Send {
        let labels = self.0.lock().unwrap().clone();
        stream::iter(labels)
            .filter(move |(key, _)| std::future::ready(key.as_str().starts_with(prefix)))
            .map(Ok)
    }

    async fn draft(&self) -> Result<ShelfDraft> {
        Ok(ShelfDraft { shelf: self.clone(), text: String::new() })
    }
}

struct ShelfDraft {
    shelf: Shelf,
    text: String,
}

impl Draft for ShelfDraft {
    async fn append(&mut self, text: &str) -> Result<()> {
        tokio::task::yield_now().await;
        self.text.push_str(text);
        Ok(())
    }

    async fn publish(self, key: Key) -> Result<()> {
        self.shelf.set_labels(&[key], self.text.into()).await.map(drop)
    }
}

type Seen = Vec<(Operation, Option<usize>)>;

/// Records every operation, and runs it twice if it is replayable.
#[derive(Clone, Default)]
struct Twice {
    seen: Arc<Mutex<Seen>>,
    runs: Arc<AtomicUsize>,
}

impl Layer for Twice {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        self.seen.lock().unwrap().push((C::OPERATION, call.batch_size()));
        if let Some(again) = on.again().filter(|_| C::OPERATION.replayable) {
            self.runs.fetch_add(1, Ordering::Relaxed);
            drop(call.run(again).await);
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        call.run(on).await
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        self.seen.lock().unwrap().push((operation, None));
        items
    }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// Generic over the backend and spawned: every future must be `Send`, although its type can't be named.
async fn work<B: Labels>(backend: B) -> Result<Vec<(Key, String)>> {
    tokio::spawn(async move {
        assert_eq!(backend.set_labels(&[key("a"), key("ab")], "one".into()).await?, 2);
        assert_eq!(Labels::label(&backend, &key("a")).await?, "one");
        let missing = Labels::label(&backend, &key("z")).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let mut draft = backend.draft().await?;
        draft.append("t").await?;
        draft.append("wo").await?;
        draft.publish(key("abc")).await?;
        backend.labels("ab").try_collect().await
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_capability_through_own_layers() {
    let expected = vec![(key("ab"), "one".to_owned()), (key("abc"), "two".to_owned())];
    assert_eq!(work(Shelf::default()).await.unwrap(), expected);

    let (outer, inner) = (Twice::default(), Twice::default());
    let layered = Layered::new(outer.clone(), Layered::new(inner.clone(), Shelf::default()));
    assert_eq!(layered.capacity(), 7);
    assert_eq!(work(layered).await.unwrap(), expected);

    use OperationKind::{Control, Read, Write};
    let seen = |layer: &Twice| -> Vec<_> {
        let seen = layer.seen.lock().unwrap();
        seen.iter()
            .map(|(operation, size)| (operation.name, operation.kind, operation.replayable, *size))
            .collect()
    };
    let calls = [
        ("set_labels", Write, true, Some(2)),
        ("label", Read, true, None),
        ("label", Read, true, None),
        ("draft", Control, false, None),
        ("transaction_append", Write, false, None),
        ("transaction_append", Write, false, None),
        ("publish", Control, false, None),
        ("labels", Read, true, None),
    ];
    assert_eq!(seen(&outer), calls);
    // The inner layer sees twice what the outer layer runs twice.
    let twice = calls.iter().flat_map(|call| {
        let repeated = call.2 && call.0 != "labels";
        std::iter::repeat_n(*call, if repeated { 2 } else { 1 })
    });
    assert_eq!(seen(&inner), twice.collect::<Vec<_>>());
    assert_eq!(outer.runs.load(Ordering::Relaxed), 3 * 2 + 4);
    assert_eq!(inner.runs.load(Ordering::Relaxed), 3 * 4 + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_capability_on_one_of_two_backends() {
    type One = Either<Shelf, Layered<Twice, Shelf>>;
    let expected = vec![(key("ab"), "one".to_owned()), (key("abc"), "two".to_owned())];
    let twice = Twice::default();
    for one in [One::Left(Shelf::default()), One::Right(Layered::new(twice.clone(), Shelf::default()))] {
        assert_eq!(one.capacity(), 7);
        assert_eq!(work(one).await.unwrap(), expected);
    }
    assert_eq!(twice.seen.lock().unwrap().len(), 8);
}

/// Stores labels with a mark, and hides it. It overrides some operations and forwards the others.
#[derive(Clone)]
struct Marked;

impl<B: Backend> BackendWrapper<B> for Marked {}

impl<B: Labels> LabelsWrapper<B> for Marked {
    type Draft = Wrapped<Self, B::Draft>;

    async fn label(&self, inner: &B, key: &Key) -> Result<String> {
        Ok(Labels::label(inner, key).await?.trim_start_matches('*').to_owned())
    }

    async fn set_labels(&self, inner: &B, keys: &[Key], label: Cow<'_, str>) -> Result<usize> {
        inner.set_labels(keys, format!("*{label}").into()).await
    }

    async fn draft(&self, inner: &B) -> Result<Self::Draft> {
        let mut draft = inner.draft().await?;
        draft.append("*").await?;
        Ok(Wrapped::new(self.clone(), draft))
    }
}

impl<D: Draft> DraftWrapper<D> for Marked {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_capability_in_a_wrapper() {
    let marked = Wrapped::new(Marked, Shelf::default());
    assert_eq!(marked.capacity(), 7);
    let stored = vec![(key("ab"), "*one".to_owned()), (key("abc"), "*two".to_owned())];
    assert_eq!(work(marked).await.unwrap(), stored, "`labels` is forwarded");
    let twice = Twice::default();
    assert_eq!(work(Layered::new(twice, Wrapped::new(Marked, Shelf::default()))).await.unwrap(), stored);
}

/// A backend whose operations are applied, but answer only after the timeout. It records which were applied.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<&'static str>>>);

impl Slow {
    /// Applies the operation, then waits for an hour.
    async fn late(&self, what: &'static str) -> Result<()> {
        self.0.lock().unwrap().push(what);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(())
    }
}

impl Backend for Slow {
    fn label(&self) -> &'static str {
        "slow"
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        self.late("health").await
    }

    async fn stats(&self) -> Result<StorageStats> {
        Ok(StorageStats::new("slow"))
    }

    async fn close(&self) -> Result<()> {
        self.late("close").await
    }
}

/// Operations with names that the library does not know: layers must decide by their attributes.
#[capability]
trait Keys: Backend {
    #[layered(LayeredTransaction)]
    type Edition: Edition;

    #[operation(control)]
    fn rotate_keys(&self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn look(&self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn edition(&self) -> impl Future<Output = Result<Self::Edition>> + Send;
}

#[capability(on = LayeredTransaction)]
trait Edition: Send + 'static {
    #[operation(write)]
    fn append(&mut self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control)]
    fn sign(&mut self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control)]
    fn publish(self) -> impl Future<Output = Result<()>> + Send;

    #[operation(write)]
    fn publish_as_write(self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn discard(self) -> impl Future<Output = Result<()>> + Send;
}

impl Keys for Slow {
    type Edition = Self;

    async fn rotate_keys(&self) -> Result<()> {
        self.late("rotate_keys").await
    }

    async fn look(&self) -> Result<()> {
        self.late("look").await
    }

    async fn edition(&self) -> Result<Self> {
        Ok(self.clone())
    }
}

impl Edition for Slow {
    async fn append(&mut self) -> Result<()> {
        self.late("append").await
    }

    async fn sign(&mut self) -> Result<()> {
        self.late("sign").await
    }

    async fn publish(self) -> Result<()> {
        self.late("publish").await
    }

    async fn publish_as_write(self) -> Result<()> {
        self.late("publish_as_write").await
    }

    async fn discard(self) -> Result<()> {
        self.late("discard").await
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_has_an_unknown_outcome_unless_the_operation_is_harmless() {
    fn outcome(result: Result<()>) -> Outcome {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        error.outcome()
    }
    let slow = Slow::default();
    let done = |what| slow.0.lock().unwrap().iter().filter(|done| **done == what).count();
    let timeout = Timeout::new(Duration::from_millis(50));
    let storage = Storage::new(slow.clone()).layer(timeout);
    let keys = storage.backend();
    let edition = || keys.edition();
    assert_eq!(outcome(keys.rotate_keys().await), Outcome::Unknown);
    assert_eq!(outcome(edition().await.unwrap().publish().await), Outcome::Unknown);
    assert_eq!(outcome(edition().await.unwrap().publish_as_write().await), Outcome::Unknown);
    assert_eq!(outcome(edition().await.unwrap().sign().await), Outcome::Unknown);
    assert_eq!(outcome(storage.clone().close().await), Outcome::Unknown);
    assert_eq!(outcome(keys.look().await), Outcome::NotApplied);
    assert_eq!(outcome(edition().await.unwrap().append().await), Outcome::NotApplied);
    assert_eq!(outcome(edition().await.unwrap().discard().await), Outcome::NotApplied);
    assert_eq!(outcome(storage.health().await), Outcome::NotApplied);

    let storage = storage.layer(Retry::new());
    let before = done("rotate_keys");
    assert_eq!(outcome(storage.backend().rotate_keys().await), Outcome::Unknown);
    assert_eq!(done("rotate_keys"), before + 1, "its outcome is unknown, so it is not repeated");
    let before = done("look");
    assert_eq!(outcome(storage.backend().look().await), Outcome::NotApplied);
    assert_eq!(done("look"), before + 4);
}

/// Types with the names that the expansion uses, and the crate under another name.
mod names {
    #![allow(dead_code)]

    pub(super) mod facade {
        pub(crate) use ::gateway_storage::*;
    }

    use facade::{Backend, BatchReport, Result, StorageStats, capability};

    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct B(pub(super) u8);
    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct L(pub(super) u8);
    /// The name that the expansion gives to the call of `swap`.
    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct SwapCall(pub(super) B, pub(super) L);

    #[capability(crate = facade)]
    pub(super) trait Swaps: Backend {
        #[layered(Wrapped)]
        type Draft: Draft;

        #[operation(write)]
        fn swap(&self, b: &B, l: L) -> impl Future<Output = Result<SwapCall>> + Send;

        #[operation(write, batch = all)]
        fn swap_many(&self, all: &[B]) -> impl Future<Output = Result<BatchReport>> + Send;

        #[operation(control)]
        fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send;

        #[forward]
        fn first(&self, b: B) -> L;
    }

    #[capability(on = LayeredTransaction, crate = facade)]
    pub(super) trait Draft: Send + 'static {
        #[operation(write)]
        fn put(&mut self, b: B) -> impl Future<Output = Result<L>> + Send;
    }

    pub(super) use facade::layer::LayeredTransaction as Wrapped;

    #[derive(Clone)]
    pub(super) struct Swapper;

    impl Backend for Swapper {
        fn label(&self) -> &'static str {
            "swapper"
        }

        fn set_deadline(&mut self, _: std::time::Duration) {}

        async fn health(&self) -> Result<()> {
            Ok(())
        }

        async fn stats(&self) -> Result<StorageStats> {
            Ok(StorageStats::new("swapper"))
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    impl Swaps for Swapper {
        type Draft = Self;

        async fn swap(&self, b: &B, l: L) -> Result<SwapCall> {
            Ok(SwapCall(B(l.0), L(b.0)))
        }

        async fn swap_many(&self, all: &[B]) -> Result<BatchReport> {
            let mut report = BatchReport::default();
            report.succeeded = all.len();
            Ok(report)
        }

        async fn draft(&self) -> Result<Self> {
            Ok(self.clone())
        }

        fn first(&self, b: B) -> L {
            L(b.0)
        }
    }

    impl Draft for Swapper {
        async fn put(&mut self, b: B) -> Result<L> {
            Ok(L(b.0))
        }
    }
}

#[tokio::test]
async fn names_of_the_caller_do_not_clash_with_the_expansion() {
    use names::{B, Draft as _, L, SwapCall, Swapper, Swaps as _};
    let layered = Layered::new(Retry::new(), Swapper);
    assert_eq!(layered.swap(&B(1), L(2)).await.unwrap(), SwapCall(B(2), L(1)));
    assert_eq!(layered.swap_many(&[B(1), B(2)]).await.unwrap().succeeded, 2);
    assert_eq!(layered.first(B(3)), L(3));
    assert_eq!(layered.draft().await.unwrap().put(B(4)).await.unwrap(), L(4));
}

/// A backend that refuses some items of a batch. It records the batches that it received.
#[derive(Clone, Default)]
struct Partial(Arc<Mutex<Vec<Vec<u8>>>>);

#[capability]
trait Numbers: Backend {
    #[operation(write, batch = numbers)]
    fn add(&self, scale: u8, numbers: &[u8]) -> impl Future<Output = Result<BatchReport>> + Send;
}

impl Backend for Partial {
    fn label(&self) -> &'static str {
        "partial"
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        Ok(())
    }

    async fn stats(&self) -> Result<StorageStats> {
        Ok(StorageStats::new("moody"))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl Numbers for Partial {
    /// Adds odd numbers always, and even numbers only if no odd one is in the batch.
    async fn add(&self, scale: u8, numbers: &[u8]) -> Result<BatchReport> {
        self.0.lock().unwrap().push(numbers.iter().map(|number| number * scale).collect());
        let is_mixed = numbers.iter().any(|number| number % 2 == 1);
        let mut report = BatchReport::default();
        for (index, number) in numbers.iter().enumerate() {
            if is_mixed && number % 2 == 0 {
                let error = Error::new(ErrorKind::Unavailable, "not now");
                report.failures.push(BatchFailure::new(index, &key("n"), error));
            } else {
                report.succeeded += 1;
            }
        }
        Ok(report)
    }
}

#[tokio::test(start_paused = true)]
async fn own_batches_are_retried_in_part() {
    let partial = Partial::default();
    let layered = Layered::new(Retry::new(), Layered::new(Twice::default(), partial.clone()));
    let report = layered.add(10, &[1, 2, 3, 4]).await.unwrap();
    assert_eq!((report.succeeded, report.is_complete()), (4, true));
    assert_eq!(*partial.0.lock().unwrap(), [vec![10, 20, 30, 40], vec![20, 40]]);
}

/// A default body in each form of an operation.
#[capability]
trait Doubles: Backend {
    #[layered(LayeredTransaction)]
    type Sum: Sum;

    #[operation(read)]
    fn double(&self, number: u8) -> impl Future<Output = Result<u8>> + Send;

    #[operation(read, batch = numbers)]
    fn double_all(&self, numbers: &[u8]) -> impl Future<Output = Result<Vec<u8>>> + Send {
        async move {
            let mut doubled = Vec::new();
            for number in numbers {
                doubled.push(self.double(*number).await?);
            }
            Ok(doubled)
        }
    }

    #[operation(read)]
    fn doubles(&self, numbers: Vec<u8>) -> impl Stream<Item = Result<u8>> + Send {
        stream::iter(numbers).then(|number| self.double(number))
    }

    #[operation(control, harmless)]
    fn sum(&self) -> impl Future<Output = Result<Self::Sum>> + Send;
}

#[capability(on = LayeredTransaction)]
trait Sum: Sized + Send + 'static {
    #[operation(write)]
    fn add(&mut self, number: u8) -> impl Future<Output = Result<u8>> + Send;

    #[operation(write)]
    fn add_twice(&mut self, number: u8) -> impl Future<Output = Result<u8>> + Send {
        async move {
            self.add(number).await?;
            self.add(number).await
        }
    }

    #[operation(control)]
    fn end(self) -> impl Future<Output = Result<()>> + Send {
        async move {
            drop(self);
            Ok(())
        }
    }
}

impl Doubles for Shelf {
    type Sum = u8;

    async fn double(&self, number: u8) -> Result<u8> {
        Ok(2 * number)
    }

    async fn sum(&self) -> Result<u8> {
        Ok(0)
    }
}

impl Sum for u8 {
    async fn add(&mut self, number: u8) -> Result<u8> {
        *self += number;
        Ok(*self)
    }
}

/// Overrides every default body, with other results.
impl Doubles for Partial {
    type Sum = Shelf;

    async fn double(&self, number: u8) -> Result<u8> {
        Ok(2 * number)
    }

    async fn double_all(&self, _: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![77])
    }

    fn doubles(&self, _: Vec<u8>) -> impl Stream<Item = Result<u8>> + Send {
        stream::iter([Ok(78)])
    }

    async fn sum(&self) -> Result<Shelf> {
        Ok(Shelf::default())
    }
}

impl Sum for Shelf {
    async fn add(&mut self, number: u8) -> Result<u8> {
        Ok(number)
    }

    async fn add_twice(&mut self, _: u8) -> Result<u8> {
        Ok(79)
    }

    async fn end(self) -> Result<()> {
        Err(Error::new(ErrorKind::Conflict, "overridden"))
    }
}

/// The results of every operation with a default body through a layer, which counts one call for each.
async fn defaults<B: Doubles>(backend: B) -> (Vec<u8>, Vec<u8>, u8, bool) {
    let count = Count::default();
    let layered = Layered::new(count.clone(), backend);
    let spawned = tokio::spawn(async move {
        let doubled = layered.double_all(&[1, 2]).await.unwrap();
        let streamed = layered.doubles(vec![3, 4]).try_collect().await.unwrap();
        let mut sum = layered.sum().await.unwrap();
        (doubled, streamed, sum.add_twice(5).await.unwrap(), sum.end().await.is_ok())
    });
    let results = spawned.await.unwrap();
    let called = ["double_all", "doubles", "sum", "transaction_add_twice", "end"].map(|name| (name, 1));
    assert_eq!(count.all(), BTreeMap::from(called));
    results
}

#[tokio::test]
async fn default_bodies_are_one_call_and_can_be_overridden() {
    assert_eq!(defaults(Shelf::default()).await, (vec![2, 4], vec![6, 8], 10, true));
    assert_eq!(defaults(Partial::default()).await, (vec![77], vec![78], 79, false));
}

/// The library's own capabilities work through a layer outside this crate.
#[cfg(feature = "memory")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn library_capabilities_through_own_layer() {
    async fn generic<B: Transactional>(backend: B) -> Result<()> {
        tokio::spawn(async move {
            let mut tx = backend.begin().await?;
            tx.set_config(&key("k"), &serde_json::json!(1).try_into()?).await?;
            tx.commit().await
        })
        .await
        .unwrap()
    }
    let storage = Storage::<gateway_storage::Memory>::open("memory:").await.unwrap();
    let layer = Twice::default();
    generic(Layered::new(layer.clone(), storage.backend().clone())).await.unwrap();
    assert_eq!(storage.get_config("k").await.unwrap().as_i64(), Some(1));
    let names: Vec<_> = layer.seen.lock().unwrap().iter().map(|(operation, _)| operation.name).collect();
    assert_eq!(names, ["begin", "transaction_set_config", "commit"]);
}
