//! [`Live`]: configuration that is parsed once and follows the store.

use std::{
    borrow::Borrow,
    fmt,
    ops::Deref,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use futures_core::Stream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    ConfigStore, ConfigValue, Error, ErrorKind, IntoKey, Key, OptionalExt, Result, Storage,
    capability::Watch,
    event::{Event, WatchOptions},
    history::DocumentKind,
    layer::{jittered, system_name},
    model::ListOptions,
};

/// Pauses before a read that failed is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A config value, or several as one struct, that follows the store.
///
/// It is parsed when it changes. [`get`](Live::get) returns what was parsed last: it takes no lock, parses
/// and copies nothing, and does not wait. A value that can't be read or does not fit `T` changes nothing;
/// [`problem`](Live::problem) says what is wrong until it is mended.
///
/// Clones share the value. A task follows the store until the last clone is dropped.
pub struct Live<T> {
    shared: Arc<Shared<T>>,
    seen: watch::Receiver<u64>,
    task: Arc<Task>,
}

struct Shared<T> {
    value: ArcSwap<T>,
    problem: ArcSwapOption<Error>,
    /// When the watch last said that nothing was missed.
    heard: Mutex<Instant>,
}

/// Ends the task when it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The value of a [`Live`] at a moment. It dereferences to `T`, and does not change.
pub struct Current<T>(Guard<Arc<T>>);

impl<T> Deref for Current<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Prints no value.
impl<T> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl<T> Live<T> {
    /// The value that was parsed last.
    ///
    /// Use it for one request and drop it: while many are held, `get` becomes slower.
    #[must_use]
    pub fn get(&self) -> Current<T> {
        Current(self.shared.value.load())
    }

    /// The value that was parsed last, to keep.
    #[must_use]
    pub fn get_owned(&self) -> Arc<T> {
        self.shared.value.load_full()
    }

    /// Why the value in the store is not the one that [`get`](Live::get) returns, if it is not:
    /// [`InvalidValue`](ErrorKind::InvalidValue) if it does not fit `T`,
    /// [`NotFound`](ErrorKind::NotFound) if it was deleted, or the error that ended the watch, such as
    /// [`Closed`](ErrorKind::Closed).
    #[must_use]
    pub fn problem(&self) -> Option<Error> {
        self.shared.problem.load().as_deref().cloned()
    }

    /// Waits until the value or the [problem](Live::problem) has changed since the last call on this clone.
    ///
    /// # Errors
    ///
    /// The error that ended the watch. Then nothing changes any more.
    ///
    /// # Cancellation
    ///
    /// A dropped call misses nothing.
    pub async fn changed(&mut self) -> Result<()> {
        let ended = |_| self.shared.problem.load().as_deref().cloned().unwrap_or_else(Error::closed);
        self.seen.changed().await.map_err(ended)
    }

    /// How old the value may be: the time since the store said that nothing was missed. It grows beyond
    /// 5 seconds while the store can't be reached.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen.clone(), task: self.task.clone() }
    }
}

/// Prints no value.
impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("age", &self.age()).field("problem", &self.problem()).finish()
    }
}

/// Configuration that follows the store.
impl<B> Storage<B> {
    /// Reads a config value and follows its changes. See [`Live`].
    ///
    /// If it is deleted later, the value stays, and [`Live::problem`] is
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound), [`InvalidValue`](ErrorKind::InvalidValue) if it does not fit `T`,
    /// those of [`watch`](Watch::watch), and [`Timeout`](ErrorKind::Timeout) after the handle's deadline.
    pub async fn live_config<T>(&self, key: impl IntoKey) -> Result<Live<T>>
    where
        B: ConfigStore + Watch,
        T: DeserializeOwned + Send + Sync + 'static,
    {
        self.live(One { key: key.into_key()?.borrow().clone(), default: None::<fn() -> T> }).await
    }

    /// As [`live_config`](Storage::live_config). While there is no such value, it is `T::default()`.
    ///
    /// # Errors
    ///
    /// Those of [`live_config`](Storage::live_config) but `NotFound`.
    pub async fn live_config_or_default<T>(&self, key: impl IntoKey) -> Result<Live<T>>
    where
        B: ConfigStore + Watch,
        T: DeserializeOwned + Default + Send + Sync + 'static,
    {
        self.live(One { key: key.into_key()?.borrow().clone(), default: Some(T::default) }).await
    }

    /// Reads all config values whose keys begin with `prefix` as one struct, and follows their changes. A
    /// field has the name of the key without the prefix, and [`serde`'s default] if there is no such value.
    ///
    /// ```
    /// # use gateway_storage::{Memory, Storage};
    /// # use serde_json::json;
    /// #[derive(serde::Deserialize)]
    /// struct Limits {
    ///     requests: u32,
    ///     #[serde(default)]
    ///     burst: u32,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_config("limits.requests", json!(10)).await?;
    /// let mut limits = storage.live_configs::<Limits>("limits.").await?;
    /// assert_eq!((limits.get().requests, limits.get().burst), (10, 0));
    ///
    /// storage.set_config("limits.burst", json!(5)).await?;
    /// limits.changed().await?;
    /// assert_eq!(limits.get().burst, 5);
    /// # Ok(()) }
    /// ```
    ///
    /// [`serde`'s default]: https://serde.rs/attr-default.html
    ///
    /// # Errors
    ///
    /// Those of [`live_config`](Storage::live_config) but `NotFound`.
    pub async fn live_configs<T>(&self, prefix: impl Into<String>) -> Result<Live<T>>
    where
        B: ConfigStore + Watch,
        T: DeserializeOwned + Send + Sync + 'static,
    {
        self.live(Under { prefix: prefix.into() }).await
    }

    async fn live<T, S>(&self, source: S) -> Result<Live<T>>
    where
        B: ConfigStore + Watch,
        T: Send + Sync + 'static,
        S: Source<B, T>,
    {
        let (first, opened) = oneshot::channel();
        let (changes, seen) = watch::channel(0);
        let storage = self.clone();
        let task = Task(tokio::spawn(async move {
            let events = pin!(storage.watch(WatchOptions::default().with_kind(DocumentKind::Config)));
            let follower =
                Follower { storage: &storage, source, shared: None, read: None, first: Some(first), changes };
            follower.run(events).await;
        }));
        let late = || Error::new(ErrorKind::Timeout, "the deadline passed before the first value was read");
        let opened = timeout(self.backend().deadline(), opened).await.map_err(|_| late())?;
        let shared: Arc<Shared<T>> = opened.map_err(|_| Error::closed())??;
        Ok(Live { shared, seen, task: Arc::new(task) })
    }
}

/// Where the value comes from.
trait Source<B, T>: Send + 'static {
    /// What is read, to be compared with what was read before.
    type Read: PartialEq + Send;

    /// Whether a change of this record concerns it.
    fn concerns(&self, key: &Key) -> bool;

    fn read(&self, storage: &Storage<B>) -> impl Future<Output = Result<Self::Read>> + Send;

    fn parse(&self, read: &Self::Read) -> Result<T>;
}

/// One config value.
struct One<D> {
    key: Key,
    default: Option<D>,
}

impl<B: ConfigStore, T: DeserializeOwned, D: Fn() -> T + Send + Sync + 'static> Source<B, T> for One<D> {
    type Read = Option<ConfigValue>;

    fn concerns(&self, key: &Key) -> bool {
        *key == self.key
    }

    async fn read(&self, storage: &Storage<B>) -> Result<Self::Read> {
        let read = storage.backend().get_config(&self.key).await;
        if self.default.is_some() { read.optional() } else { read.map(Some) }
    }

    fn parse(&self, read: &Self::Read) -> Result<T> {
        match (read, &self.default) {
            (Some(value), _) => value.to_typed().map_err(|error: Error| error.with_key(&self.key)),
            (None, Some(default)) => Ok(default()),
            (None, None) => {
                Err(Error::new(ErrorKind::NotFound, "there is no such config value").with_key(&self.key))
            }
        }
    }
}

/// All config values under a prefix.
struct Under {
    prefix: String,
}

impl<B: ConfigStore, T: DeserializeOwned> Source<B, T> for Under {
    type Read = Map<String, Value>;

    fn concerns(&self, key: &Key) -> bool {
        key.as_str().starts_with(&self.prefix)
    }

    async fn read(&self, storage: &Storage<B>) -> Result<Self::Read> {
        let values = storage.backend().stream_configs(ListOptions::default().with_prefix(&self.prefix));
        let fields = values
            .map_ok(|(key, value)| (key.as_str()[self.prefix.len()..].to_owned(), value.value().clone()));
        fields.try_collect().await
    }

    fn parse(&self, read: &Self::Read) -> Result<T> {
        ConfigValue::new(Value::Object(read.clone()))?.to_typed()
    }
}

/// The task that follows the store.
struct Follower<'s, B, T, S: Source<B, T>> {
    storage: &'s Storage<B>,
    source: S,
    /// None until the first value was read.
    shared: Option<Arc<Shared<T>>>,
    read: Option<S::Read>,
    first: Option<oneshot::Sender<Result<Arc<Shared<T>>>>>,
    /// Counts the changes of the value and of the problem. Dropped at the end.
    changes: watch::Sender<u64>,
}

impl<B: ConfigStore + Watch, T, S: Source<B, T>> Follower<'_, B, T, S> {
    /// Follows the store until the watch ends or the first value can't be had.
    async fn run(mut self, mut events: Pin<&mut (impl Stream<Item = Result<Event>> + Send)>) {
        let (mut again, mut pause) = (None, FIRST_PAUSE);
        let end = loop {
            let event = match again {
                None => Ok(events.next().await),
                Some(at) => timeout_at(at, events.next()).await,
            };
            let mut is_due = event.is_err();
            let mut ended = None;
            let mut event = event.ok();
            // Many changes are one read.
            while let Some(next) = event {
                match next.unwrap_or_else(|| Err(Error::closed())) {
                    Ok(event) => is_due |= self.hears(&event),
                    Err(error) => {
                        ended = Some(error);
                        break;
                    }
                }
                event = events.next().now_or_never();
            }
            if let Some(error) = ended {
                break error;
            }
            if is_due {
                let read = self.source.read(self.storage).await;
                again = match read {
                    Err(error) if error.passes() => {
                        let at = Instant::now() + jittered(pause);
                        pause = LONGEST_PAUSE.min(pause * 2);
                        Some(at)
                    }
                    read => {
                        pause = FIRST_PAUSE;
                        if let Err(error) = self.take(read) {
                            break error;
                        }
                        None
                    }
                };
            }
        };
        match self.first.take() {
            Some(first) => drop(first.send(Err(end))),
            None => self.note(Some(end)),
        }
    }

    /// Notes what is wrong now, or that nothing is.
    fn note(&self, problem: Option<Error>) {
        let Some(shared) = &self.shared else { return };
        let before = shared.problem.swap(problem.map(Arc::new));
        if before.is_some() || shared.problem.load().is_some() {
            self.tell();
        }
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Whether the value must be read again.
    fn hears(&self, event: &Event) -> bool {
        if let Some(shared) = &self.shared {
            *shared.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        match event {
            Event::Changed { key, .. } => key.as_ref().is_none_or(|key| self.source.concerns(key)),
            Event::Resync { .. } => true,
            Event::Idle { .. } => false,
        }
    }

    /// Takes what was read. An error ends the task: there is no first value.
    fn take(&mut self, read: Result<S::Read>) -> Result<()> {
        if let (Ok(read), Some(last)) = (&read, &self.read)
            && read == last
        {
            self.note(None);
            return Ok(());
        }
        let parsed = read.and_then(|read| {
            let value = self.source.parse(&read)?;
            Ok((read, Arc::new(value)))
        });
        match (parsed, &self.shared) {
            (Ok((read, value)), Some(shared)) => {
                self.read = Some(read);
                shared.value.store(value);
                shared.problem.store(None);
                self.tell();
            }
            (Ok((read, value)), None) => {
                let shared = Arc::new(Shared {
                    value: ArcSwap::new(value),
                    problem: ArcSwapOption::empty(),
                    heard: Mutex::new(Instant::now()),
                });
                self.read = Some(read);
                self.shared = Some(shared.clone());
                if let Some(first) = self.first.take() {
                    drop(first.send(Ok(shared)));
                }
            }
            (Err(error), Some(_)) => {
                let system = system_name(self.storage.label());
                tracing::warn!(
                    target: "gateway_storage",
                    system,
                    error = %error,
                    "a live config value was not taken over; the old one stays"
                );
                metrics::counter!("gateway_storage.live.refused", "db.system.name" => system).increment(1);
                self.note(Some(error));
            }
            (Err(error), None) => return Err(error),
        }
        Ok(())
    }
}
