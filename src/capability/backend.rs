//! [`Backend`]: the root of all capabilities. [`Open`]: opens a backend from its options or a URL.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Key, Result, StorageStats, capability, codec::options_from};

/// The deadline of a call for which none is configured: 10 s after it begins.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Stores records: the root of all capabilities.
///
/// A backend is a cheap handle: clones share the same store, and closing one closes all.
///
/// # Every operation of every capability
///
/// - **Deadline.** It ends within the handle's [deadline](Backend::deadline), or within the time that the
///   layers around it have left, if that is less. A backend gets that time from
///   [`time_left`](crate::layer::time_left), which it calls once, when the operation begins. After the
///   deadline the error is [`Timeout`](crate::ErrorKind::Timeout), and its [outcome](crate::Error::outcome)
///   says whether the operation may have been applied. A batch that reaches its deadline may return `Ok`,
///   with [`Timeout`](crate::ErrorKind::Timeout) as the error of the items that were not applied in time.
/// - **Cancellation.** Its future may be dropped at any await without effect on other calls. The operation is
///   then applied as a whole or not at all. It may be applied after the drop: a server can run for a few
///   seconds what it was sent, even after a later write. For a batch (an operation that returns a
///   [report](crate::BatchReport) on its items) this holds for each item, and for the batch as a whole only
///   where the backend says that its batches are all-or-nothing.
/// - **Key of an error.** If the error is about one record ([`NotFound`](crate::ErrorKind::NotFound) of
///   `get`, `delete` and `reset`, an overflow), [`Error::key`](crate::Error::key) is that record's key. No
///   text contains it.
/// - **Close.** After [`close`](Backend::close) every operation returns [`Closed`](crate::ErrorKind::Closed);
///   an empty batch may also be `Ok`.
#[capability(wrapper = BackendWrapper)]
#[diagnostic::on_unimplemented(message = "`{Self}` is not a storage backend")]
pub trait Backend: Clone + Send + Sync + 'static {
    /// The backend's name in statistics, errors and telemetry: `"file"`, `"memory"`, `"redis"`.
    #[forward]
    fn label(&self) -> &'static str;

    /// The name or number of the server's database that holds the store, as the OpenTelemetry conventions
    /// define it for `db.namespace`. `None` for a backend without databases. It must not be a secret.
    #[forward]
    fn namespace(&self) -> Option<&str> {
        None
    }

    /// The length of the longest key that the backend stores, in bytes: at most [`Key::MAX_BYTES`]. A wrapper
    /// that adds a prefix returns less. A longer key is [`InvalidKey`](crate::ErrorKind::InvalidKey).
    #[forward]
    fn max_key_bytes(&self) -> usize {
        Key::MAX_BYTES
    }

    /// Sets the deadline of every later call on this handle. Other handles keep theirs.
    #[forward(layer)]
    fn set_deadline(&mut self, deadline: Duration);

    /// How long a call on this handle may take: as set by [`set_deadline`](Backend::set_deadline), or else by
    /// the backend's options. A layer receives it when it is [added](crate::layer::Layer::put_on).
    #[forward]
    fn deadline(&self) -> Duration {
        DEFAULT_DEADLINE
    }

    /// Checks whether the backend can serve reads and writes now.
    ///
    /// - `Ok` only after a real check: a server has answered, or no write to a store on disk has failed.
    #[operation(control, harmless, operator)]
    fn health(&self) -> impl Future<Output = Result<()>> + Send;

    /// Counts the records and describes the store, without secrets or keys.
    ///
    /// Layers may add fields: see [`StorageStats`].
    #[operation(control, harmless, operator, then = complete_stats)]
    fn stats(&self) -> impl Future<Output = Result<StorageStats>> + Send;

    /// Finishes the writes in progress and releases all files, locks and connections.
    ///
    /// - After `Ok`, another process can open the store.
    /// - It closes every handle. Closing again is `Ok`.
    #[operation(control, replayable, operator, closes)]
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
}

/// Opens a backend from a URL such as `file:./data`, or from the typed [`Options`](Open::Options).
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be opened from options",
    note = "open the bare backend, `Storage::<File>::open(..)`, then add layers with `.layer(..)`"
)]
pub trait Open: Backend {
    /// The backend's options. They are parsed from a URL or deserialized; unknown fields are refused.
    type Options: DeserializeOwned + for<'url> TryFrom<&'url str, Error = Error> + Send;

    /// The schemes of the URLs that [`Options`](Open::Options) are parsed from, without `:`. The first one is
    /// the backend's [`label`](Backend::label); [`Either`](crate::Either) has those of both.
    const SCHEMES: &'static [&'static str];

    /// For [`EitherOptions`](crate::either::EitherOptions): the names of the backends that these can be, and
    /// the options of the one with this name from a map.
    #[doc(hidden)]
    fn names() -> Vec<&'static str> {
        Self::SCHEMES.first().copied().into_iter().collect()
    }

    #[doc(hidden)]
    fn options_of(name: &str, fields: Map<String, Value>) -> Result<Self::Options> {
        options_from(name, fields)
    }

    /// Opens the store.
    ///
    /// - Data that is damaged, foreign or in a newer format is an error, and is not changed.
    fn open(options: Self::Options) -> impl Future<Output = Result<Self>> + Send;
}
