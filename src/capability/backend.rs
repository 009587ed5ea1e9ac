//! [`Backend`]: what everything that stores can do. [`Open`]: how it starts.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::{Error, Result, StorageStats, capability};

/// A place where data is stored: the root of all capabilities.
///
/// A backend is a cheap handle: clones share the same store, and closing one closes all.
///
/// # Every operation of every capability
///
/// - ends: within the handle's [deadline](Backend::deadline), or the time that the layers around it have left, if that is less. One call of
///   [`time_left`](crate::layer::time_left) where the operation begins gives a backend that time. After it the error is [`Timeout`](crate::ErrorKind::Timeout), and its
///   [outcome](crate::Error::outcome) says whether the operation may have been applied.
/// - may be dropped at any await, and nothing else is disturbed. What is no batch is then applied as a whole or not at all.
///   Of a batch (an operation with a [report](crate::BatchReport) of its items) each item is: some may be applied and others
///   not, but where the backend says that a batch is all-or-nothing.
/// - is a batch that is late: it may be `Ok`, with items that were applied, and others whose error is
///   [`Timeout`](crate::ErrorKind::Timeout).
/// - says which record an error is about, if it is about one: `get`, `delete` and `reset` of one that is not there, an
///   overflow. Its key is [`Error::key`](crate::Error::key), and in no text.
/// - after [`close`](Backend::close) is [`Closed`](crate::ErrorKind::Closed).
#[capability]
#[diagnostic::on_unimplemented(message = "`{Self}` is not a storage backend")]
pub trait Backend: Clone + Send + Sync + 'static {
    /// The backend's name in statistics, errors and telemetry: `"file"`, `"memory"`, `"redis"`.
    #[forward]
    fn label(&self) -> &'static str;

    /// The part of a server that holds the store, as the OpenTelemetry conventions want it for `db.namespace`: a database's
    /// name or number. None if there is no such thing. No secret.
    #[forward]
    fn namespace(&self) -> Option<&str> {
        None
    }

    /// Sets the deadline of every later call on this handle. Other handles keep theirs.
    #[forward(layer)]
    fn set_deadline(&mut self, deadline: Duration);

    /// How long a call on this handle may take: what [`set_deadline`](Backend::set_deadline) set, or else the configuration. Layers are
    /// told it when they are [put on](crate::Layer::put_on).
    #[forward]
    fn deadline(&self) -> Duration {
        crate::DEFAULT_DEADLINE
    }

    /// Says whether the backend can serve reads and writes now.
    ///
    /// - `Ok` only after asking: a server is spoken to, a store on disk has not failed a write.
    #[operation(control, harmless, operator)]
    fn health(&self) -> impl Future<Output = Result<()>> + Send;

    /// Counts what is stored and describes the store. No secrets, no keys.
    ///
    /// Layers may add what they know: see [`StorageStats`].
    #[operation(control, harmless, operator, then = complete_stats)]
    fn stats(&self) -> impl Future<Output = Result<StorageStats>> + Send;

    /// Finishes the writes under way and releases everything: files, locks, connections.
    ///
    /// - When it returns `Ok`, another process can open the store.
    /// - Every handle is closed with it. Closing again is `Ok`.
    #[operation(control, replayable, operator, closes)]
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
}

/// A backend that is opened from a configuration: a URL such as `file:./data`, or the typed
/// [`Config`](Open::Config).
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be opened from a configuration",
    note = "open the bare backend, `Storage::<File>::open(..)`, then add layers with `.layer(..)`"
)]
pub trait Open: Backend {
    /// What it is opened with. It is made from a URL, or deserialized; unknown fields are refused.
    type Config: DeserializeOwned + for<'url> TryFrom<&'url str, Error = Error> + Send;

    /// Opens the store.
    ///
    /// - It checks what it finds: damaged, foreign or newer data is an error, and is left as it is.
    fn open(config: Self::Config) -> impl Future<Output = Result<Self>> + Send;
}
