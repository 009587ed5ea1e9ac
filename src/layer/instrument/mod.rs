//! [`Instrument`]: spans, metrics and recent performance.

mod meters;
mod pool;
mod recent;

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_core::Stream;
use futures_util::stream;
pub(crate) use meters::system_name;
use meters::{Handles, Meters, Table};
pub use pool::POOL_INTERVAL;
use recent::Recent;
use tokio::sync::watch;
use tracing::{Span, field::Empty};

use crate::{
    Backend, Error, ErrorKind, Result, StorageStats,
    layer::{Call, Layer, Operation, OperationKind, Receiver},
};

/// Reports every operation to `tracing` and `metrics`, under the names of the stable OpenTelemetry
/// conventions for databases, and fills [`StorageStats::performance`]. Add it with
/// [`Storage::instrumented`](crate::Storage::instrumented), or as part of a [`Stack`](crate::layer::Stack). Spans,
/// events and metrics contain no key, value or password.
///
/// # Spans and events
///
/// One span per operation, at level INFO, with the target `gateway_storage`. Its name for OpenTelemetry
/// (`otel.name`) is `{operation} {namespace}`.
///
/// | attribute | |
/// |---|---|
/// | `db.system.name` | `postgresql`, `redis`, `mongodb`, `file`, `memory` |
/// | `db.namespace` | PostgreSQL: `database\|schema`; Redis: the database's number; MongoDB: the database; else absent |
/// | `db.operation.name` | `get_credential`, `transaction_set_config`, `commit` |
/// | `db.operation.batch.size` | items of a batch, unless it has exactly one |
/// | `db.response.returned_rows` | records that a stream returned |
/// | `error.type` | the error's [kind](ErrorKind::as_str), or `cancelled`: the caller dropped the call. Absent if it succeeded, and for a watch that its reader dropped |
/// | `db.response.status_code` | with an error: the [code](Error::code), an SQLSTATE, a Redis prefix or MongoDB's number, if there was one |
/// | `otel.kind`, `otel.status_code` | `client`; `ERROR` with most errors, see below |
///
/// When the operation ends, the span gets an event, at DEBUG or WARN. Not every error is the store's:
///
/// | error | event | `error.type` | `otel.status_code` | [`error_rate`](crate::Performance::error_rate) |
/// |---|---|---|---|---|
/// | [`NotFound`](ErrorKind::NotFound), an ordinary answer | DEBUG | absent | absent | no |
/// | [`InvalidKey`](ErrorKind::InvalidKey), [`InvalidValue`](ErrorKind::InvalidValue), [`TooLarge`](ErrorKind::TooLarge), [`Overflow`](ErrorKind::Overflow), [`Conflict`](ErrorKind::Conflict): due to the caller | DEBUG | the kind | absent | no |
/// | [`Busy`](ErrorKind::Busy): load shedding | DEBUG | the kind | `ERROR` | yes |
/// | every other error, and `cancelled` | WARN | the kind | `ERROR` | yes |
///
/// # Metrics
///
/// | name | kind | labels, besides `db.system.name` and `db.namespace` |
/// |---|---|---|
/// | `db.client.operation.duration` | histogram, seconds | `db.operation.name`; with an error `error.type`, `db.response.status_code` |
/// | `gateway_storage.operation.batch.size` | histogram | `db.operation.name` |
/// | `gateway_storage.operation.active` | gauge | `db.operation.name` |
/// | `gateway_storage.operation.retries` | counter, of [`Retry`](crate::layer::Retry) | only `db.operation.name`, `error.type` |
/// | `db.client.connection.count` | gauge | `db.client.connection.state` (`idle`, `used`), `db.client.connection.pool.name` |
/// | `db.client.connection.max`, `.pending_requests` | gauge | `db.client.connection.pool.name` |
///
/// [`refresh_once`](crate::Storage::refresh_once) has a span and a metric of its own, with and without
/// this layer, and [`watch`](crate::watch) has metrics.
///
/// The last two rows are for backends with a pool, which is sampled on an interval: see
/// [`Storage::instrumented_pool`](crate::Storage::instrumented_pool).
///
/// Metrics go to the recorder of the crate [`metrics`](https://docs.rs/metrics) 0.24. The application and its
/// exporter must use the same version: each version has its own recorder, and metrics without a recorder are
/// dropped silently. `cargo tree --duplicates` shows whether there are two versions.
///
/// The recorder may be installed before or after this layer; an operation keeps the handles of the first
/// recorder that it finds. A recorder whose type has no fields counts as none.
///
/// # Cost
///
/// Without a subscriber and a recorder: tens of nanoseconds per call, and no allocation. Then one call in
/// sixteen is timed for the statistics, and all calls are counted. [BENCHMARKS] has the numbers.
///
/// Clones share everything. Transactions and streams report through the layer of the storage that began them.
///
/// [BENCHMARKS]: https://github.com/gateway-storage/gateway-storage/blob/main/BENCHMARKS.md
#[derive(Clone, Debug)]
pub struct Instrument(Arc<Shared>);

struct Shared {
    table: Table,
    recent: Recent,
    /// When an export was last read to its end, in milliseconds since 1970. 0 is never.
    last_export: AtomicU64,
    /// Ends the task that samples a pool: by a value when the storage closes, or by being dropped.
    closed: watch::Sender<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.table.system)
    }
}

/// One call in this many is timed if nothing else needs the time: reading the clock twice costs more than the
/// rest.
const TIMED_EVERY: u64 = 16;

impl Instrument {
    /// The name of the histogram of every operation's duration, in seconds. Needed to configure its buckets.
    pub const DURATION: &str = meters::DURATION;

    /// Buckets for [`DURATION`](Self::DURATION): those of the OpenTelemetry conventions, and finer ones
    /// below, because a local store answers in microseconds.
    pub const DURATION_BUCKETS: [f64; 14] =
        [1e-6, 5e-6, 2.5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 10.0];

    /// The name of the histogram of every batch's number of items.
    pub const BATCH_SIZE: &str = meters::BATCH_SIZE;

    /// Reports operations on this backend.
    #[must_use]
    pub fn new(backend: &impl Backend) -> Self {
        meters::describe();
        Self(Arc::new(Shared {
            table: Table::new(backend.label(), backend.namespace()),
            recent: Recent::new(),
            last_export: AtomicU64::new(0),
            closed: watch::Sender::new(()),
        }))
    }

    fn begin(&self, operation: Operation, batch: Option<usize>) -> Running<'_> {
        let Shared { table, recent, .. } = &*self.0;
        let meters = table.meters(operation);
        let handles = meters.handles(batch.is_some());
        if let Some(handles) = handles {
            handles.active.increment(1.0);
            if let Some(size) = batch {
                handles.batch_size.record(size as f64);
            }
        }
        let span = tracing::info_span!(
            target: "gateway_storage",
            "operation",
            otel.name = &*meters.span_name,
            otel.kind = "client",
            otel.status_code = Empty,
            db.system.name = &*table.system,
            db.namespace = table.namespace.as_deref(),
            db.operation.name = operation.name,
            db.operation.batch.size = batch.filter(|size| *size != 1),
            db.response.status_code = Empty,
            db.response.returned_rows = Empty,
            "error.type" = Empty,
        );
        let count = recent.count();
        let is_timed = handles.is_some() || !span.is_none() || count % TIMED_EVERY == 0;
        Running {
            instrument: &self.0,
            meters,
            handles,
            span,
            begun: is_timed.then(Instant::now),
            name: operation.name,
            kind: operation.kind,
            is_backup: operation.backup,
            is_endless: operation.endless,
            items: None,
            is_awaited: false,
            ended: false,
        }
    }
}

/// An operation in progress, until it ends or is dropped.
struct Running<'i> {
    instrument: &'i Shared,
    meters: &'i Meters,
    handles: Option<&'i Handles>,
    span: Span,
    begun: Option<Instant>,
    name: &'static str,
    kind: OperationKind,
    is_backup: bool,
    is_endless: bool,
    /// The number of items that a stream has returned; `None` for other operations.
    items: Option<u64>,
    /// Whether the reader waits for the stream's next item.
    is_awaited: bool,
    ended: bool,
}

impl Running<'_> {
    #[inline]
    fn end(&mut self, error: Option<&Error>) {
        let failure = error.and_then(Failure::of);
        self.settle(failure);
    }

    /// Records what a stream returned.
    fn note<T>(&mut self, next: Option<&Result<T>>) {
        if self.ended {
            return;
        }
        match next {
            Some(Ok(_)) => self.items = self.items.map(|items| items + 1),
            Some(Err(error)) => self.end(Some(error)),
            None => {
                self.end(None);
                if self.is_backup {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    self.instrument.last_export.fetch_max(now.as_millis() as u64, Ordering::Relaxed);
                }
            }
        }
    }

    fn settle(&mut self, failure: Option<Failure<'_>>) {
        self.ended = true;
        if let Some(items) = self.items {
            self.span.record("db.response.returned_rows", items);
        }
        let Shared { recent, .. } = self.instrument;
        let now = self.begun.map(|begun| (Instant::now(), begun));
        let elapsed = now.map(|(now, begun)| now.duration_since(begun));
        if let (Some((now, _)), Some(elapsed)) = (now, elapsed) {
            recent.measure(now, self.kind, elapsed);
        }
        if let Some(handles) = self.handles {
            handles.active.decrement(1.0);
            if let (None, Some(elapsed)) = (&failure, elapsed) {
                handles.duration.record(elapsed);
            }
        }
        let name = self.name;
        let Some(Failure { kind, code, store_error, warns }) = failure else {
            if !self.span.is_none() {
                let _entered = self.span.enter();
                tracing::debug!(target: "gateway_storage", operation = name, elapsed = elapsed.map(debug), "done");
            }
            return;
        };
        if store_error {
            recent.fail();
            self.span.record("otel.status_code", "ERROR");
        }
        if let (Some(_), Some(elapsed)) = (self.handles, elapsed) {
            self.meters.fail(kind, code, elapsed);
        }
        self.span.record("error.type", kind);
        if let Some(code) = code {
            self.span.record("db.response.status_code", code);
        }
        let _entered = self.span.enter();
        // The level of an event is part of its call site.
        macro_rules! emit {
            ($level:ident) => {
                tracing::$level!(
                    target: "gateway_storage",
                    operation = name,
                    elapsed = elapsed.map(debug),
                    "error.type" = kind,
                    "db.response.status_code" = code,
                    "failed"
                )
            };
        }
        if warns { emit!(warn) } else { emit!(debug) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        match (self.ended, self.items) {
            (true, _) => {}
            // The reader dropped the stream between two items, or one that has no end.
            (false, Some(_)) if !self.is_awaited || self.is_endless => self.settle(None),
            (false, _) => {
                self.settle(Some(Failure { kind: "cancelled", code: None, store_error: true, warns: true }))
            }
        }
    }
}

/// How a failed operation is reported.
struct Failure<'e> {
    kind: &'static str,
    code: Option<&'e str>,
    /// Whether the store caused it, and not the caller.
    store_error: bool,
    warns: bool,
}

impl<'e> Failure<'e> {
    fn of(error: &'e Error) -> Option<Self> {
        use ErrorKind::{Busy, Conflict, InvalidKey, InvalidValue, NotFound, Overflow, TooLarge};

        let kind = error.kind();
        let store_error = !matches!(kind, Conflict | InvalidKey | InvalidValue | Overflow | TooLarge);
        let warns = store_error && kind != Busy;
        let code = error.code().and_then(status_code);
        (kind != NotFound).then_some(Self { kind: kind.as_str(), code, store_error, warns })
    }
}

/// The backend's code, if it looks like one: arbitrary text from a broken server must not become a label.
fn status_code(code: &str) -> Option<&str> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == ' ' || letter == '_';
    (code.len() <= 24 && code.chars().all(plain)).then_some(code)
}

impl Layer for Instrument {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let mut running = self.begin(C::OPERATION, call.batch_size());
        let result = {
            let mut run = pin!(call.run(on));
            poll_fn(|context| running.span.in_scope(|| run.as_mut().poll(context))).await
        };
        running.end(match &result {
            Ok(output) => C::failure(output),
            Err(error) => Some(error),
        });
        if C::OPERATION.closes && result.is_ok() {
            self.0.closed.send_replace(());
        }
        result
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        let begin = move || {
            let mut running = self.begin(operation, None);
            // Its duration depends on the reader, so it does not count as the store's latency.
            running.kind = OperationKind::Control;
            running.items = Some(0);
            running
        };
        // Begun at the first poll: a stream that is never polled sends no request to the store.
        let mut running = None;
        // One box per stream, which costs little beside its items.
        let mut items = Box::pin(items);
        stream::poll_fn(move |context| {
            let running = running.get_or_insert_with(&begin);
            let next = running.span.in_scope(|| items.as_mut().poll_next(context));
            running.is_awaited = next.is_pending();
            if let Poll::Ready(next) = &next {
                running.note(next.as_ref());
            }
            next
        })
    }

    fn complete_stats(&self, stats: &mut StorageStats) {
        stats.performance = Some(self.0.recent.performance());
        let exported = self.0.last_export.load(Ordering::Relaxed);
        if exported != 0 {
            let when = UNIX_EPOCH + Duration::from_millis(exported);
            stats.last_backup = stats.last_backup.max(Some(when));
        }
    }
}
