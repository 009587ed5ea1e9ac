//! [`Watch`]: which records change, as a stream.

use futures_core::Stream;

use crate::{
    Backend, Result, capability,
    event::{Event, WatchOptions},
};

/// Tells which credentials and config values change, also those that other processes and programs change.
///
/// A watch tells keys, never values: read the record again. It never misses a change silently; only after
/// the commands SWAPDB and DEBUG RELOAD a Redis server tells nothing. Counters, cache values and the history
/// are not watched.
#[capability(wrapper = WatchWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not tell what changes",
    note = "backends that can be watched: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait Watch: Backend {
    /// Streams the changes until it is dropped.
    ///
    /// - The first event is [`Resync`](Event::Resync). With a cursor it is that only if the cursor is of
    ///   another store, or the changes since then are no longer known; otherwise the changes since then come
    ///   first.
    /// - Every change that is made after a `Resync` was returned is told, in one of the next events: by
    ///   [`Changed`](Event::Changed), or by another `Resync` if changes were missed. An event may also be told
    ///   twice, or without a change. Events of different records have no order.
    /// - A reader that is too slow gets a `Resync` in place of what it missed.
    /// - If nothing changes, [`Idle`](Event::Idle) comes at least every 5 seconds. While the store can't be
    ///   reached no event comes. The watch connects again by itself, after a random pause, so that a thousand
    ///   processes do not all read again at once.
    /// - An error ends the stream. It is one that waiting does not heal:
    ///   [`Closed`](crate::ErrorKind::Closed), [`Denied`](crate::ErrorKind::Denied), or
    ///   [`Unsupported`](crate::ErrorKind::Unsupported) if this server can't do it.
    /// - The deadline of the handle does not hold for the stream.
    #[operation(read, endless)]
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send;
}
