//! A stranger's capability, on his own backend, through his own layer: he needs nothing that isn't public.

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
    Backend, Call, Error, ErrorKind, Key, Layer, Layered, LayeredTransaction, Operation, OperationKind,
    Receiver, Result, StorageStats, Transaction, Transactional, capability,
};

/// Labels by key: every form that an operation may have.
#[capability]
#[diagnostic::on_unimplemented(message = "`{Self}` has no labels")]
trait Labels: Backend {
    #[layered(LayeredDraft)]
    type Draft: Draft;

    /// No operation.
    #[forward]
    fn capacity(&self) -> usize;

    #[operation(read)]
    fn label(&self, key: &Key) -> impl Future<Output = Result<String>> + Send;

    // Two borrows, one of them in a generic type; names that the expansion uses, too.
    #[operation(write, replayable, batch = layer)]
    fn set_labels(&self, layer: &[Key], inner: Cow<'_, str>) -> impl Future<Output = Result<usize>> + Send;

    #[operation(read)]
    fn labels(&self, prefix: &str) -> impl Stream<Item = Result<(Key, String)>> + Send;

    #[operation(control)]
    fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send;
}

/// A label that is written in steps.
#[capability(on = LayeredTransaction)]
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
        // A real wait: what is spawned is held across it.
        tokio::task::yield_now().await;
        let found = self.0.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such label"))
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

/// Notes every operation, and runs it twice where that is allowed.
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

/// Generic over the backend and spawned: every future must be Send without anyone naming its type.
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
async fn a_strangers_capability() {
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
    // What the outer layer runs twice, the inner one sees twice.
    let twice = calls.iter().flat_map(|call| {
        let repeated = call.2 && call.0 != "labels";
        std::iter::repeat_n(*call, if repeated { 2 } else { 1 })
    });
    assert_eq!(seen(&inner), twice.collect::<Vec<_>>());
    assert_eq!(outer.runs.load(Ordering::Relaxed), 3 * 2 + 4);
    assert_eq!(inner.runs.load(Ordering::Relaxed), 3 * 4 + 4);
}

/// The library's own capabilities are there for a stranger's code, too, through any layers.
#[cfg(feature = "memory")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_librarys_capabilities_through_a_strangers_layer() {
    async fn generic<B: Transactional>(backend: B) -> Result<()> {
        tokio::spawn(async move {
            let mut tx = backend.begin().await?;
            tx.set_config(&key("k"), &serde_json::json!(1).try_into()?).await?;
            tx.commit().await
        })
        .await
        .unwrap()
    }
    let storage = gateway_storage::Storage::<gateway_storage::Memory>::open("memory:").await.unwrap();
    let layer = Twice::default();
    generic(Layered::new(layer.clone(), storage.backend().clone())).await.unwrap();
    assert_eq!(storage.get_config("k").await.unwrap().as_i64(), Some(1));
    let names: Vec<_> = layer.seen.lock().unwrap().iter().map(|(operation, _)| operation.name).collect();
    assert_eq!(names, ["begin", "transaction_set_config", "commit"]);
}

/// Does its work, and answers late.
#[capability]
trait Vault: Backend {
    #[operation(control)]
    fn rotate_keys(&self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn count_keys(&self) -> impl Future<Output = Result<()>> + Send;
}

impl Vault for Shelf {
    async fn rotate_keys(&self) -> Result<()> {
        let rotations = self.0.lock().unwrap().len();
        self.0.lock().unwrap().insert(Key::new(&rotations.to_string())?, String::new());
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    async fn count_keys(&self) -> Result<()> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}

/// What a layer can't know was not done is Unknown, whatever the operation is called.
#[tokio::test(start_paused = true)]
async fn a_late_operation_of_another_crate_may_have_been_done() {
    use gateway_storage::{Outcome, Retry, Storage, Timeout};
    let shelf = Shelf::default();
    let timed =
        Storage::new(shelf.clone()).layer(Timeout::new(Duration::from_millis(50))).layer(Retry::new());
    let error = timed.backend().rotate_keys().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
    assert_eq!(shelf.0.lock().unwrap().len(), 1, "it is not repeated");
    let error = timed.backend().count_keys().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);

    let draft = timed.backend().draft().await.unwrap();
    let late = LayeredDraft::new(Timeout::new(Duration::from_millis(50)), Slow(draft.into_parts().1));
    let error = late.publish(Key::new("a").unwrap()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
}

/// A draft that answers late.
struct Slow<D>(D);

impl<D: Draft> Draft for Slow<D> {
    async fn append(&mut self, text: &str) -> Result<()> {
        self.0.append(text).await
    }

    async fn publish(self, key: Key) -> Result<()> {
        self.0.publish(key).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}
