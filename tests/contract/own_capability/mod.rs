//! A capability outside this crate, on a backend and through a layer outside this crate: all with public
//! items only.

/// A backend without a deadline that never fails.
macro_rules! plain_backend {
    ($backend:ty, $label:literal) => {
        impl gateway_storage::Backend for $backend {
            fn label(&self) -> &'static str {
                $label
            }

            fn set_deadline(&mut self, _: std::time::Duration) {}

            async fn health(&self) -> gateway_storage::Result<()> {
                Ok(())
            }

            async fn stats(&self) -> gateway_storage::Result<gateway_storage::StorageStats> {
                Ok(gateway_storage::StorageStats::new($label))
            }

            async fn close(&self) -> gateway_storage::Result<()> {
                Ok(())
            }
        }
    };
}

mod batches;
mod defaults;
mod names;
mod outcomes;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    Backend, Either, Error, ErrorKind, Key, Result, Storage, Transaction, Transactional, capability,
    layer::{Call, Layer, Layered, LayeredTransaction, Operation, OperationKind, Receiver},
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

plain_backend!(Shelf, "shelf");

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
