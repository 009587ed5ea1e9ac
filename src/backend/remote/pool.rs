//! A pool of connections that one call has for itself: fair, counted and replaceable.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bb8::{ErrorSink, ManageConnection, QueueStrategy, RunError};
use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{
    connection_timeout,
    current::{Current, Retire},
    queue::Queue,
};
use crate::{Error, ErrorKind, PoolStats, Result};

/// Opens the connections of a pool.
pub(crate) trait Dial: Send + Sync + 'static {
    type Connection: Reuse;
    /// How errors name the server.
    const SERVER: &'static str;

    fn dial(&self) -> impl Future<Output = Result<Self::Connection>> + Send;
}

/// A connection that calls use one after another.
pub(crate) trait Reuse: Send + 'static {
    /// Whether it must not be used any more.
    fn is_dead(&self) -> bool;

    /// Whether a call left it in a state that `clean_up` must end before the next call.
    fn needs_cleanup(&self) -> bool;

    /// Ends what the last call left, or leaves the connection dead.
    fn clean_up(&mut self) -> impl Future<Output = ()> + Send;
}

/// The size of a pool, and how long it keeps a connection. Zero means no limit.
pub(crate) struct Limits {
    pub(crate) max: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
}

/// A pool of one size, with a fair queue in front: bb8 lets later callers overtake.
///
/// bb8 can't be resized, so a pool of another size replaces this one, which is retired: waiting calls move to
/// the new one, and connections are closed as they are returned.
pub(crate) struct Pool<D: Dial> {
    pool: bb8::Pool<Manager<D>>,
    queue: Arc<Queue>,
    /// The number of permits that are withheld, because the server accepts no further connections.
    withheld: Arc<AtomicU32>,
    failures: watch::Sender<Option<Error>>,
}

/// How long a permit is withheld, multiplied by the number of withheld permits.
const WITHHOLD_TIME: Duration = Duration::from_secs(1);

/// How often a call tries again to connect to a server that is full, while the pool has no connection. Each
/// attempt is after a [pause](RETRY_PAUSE).
const MAX_REFUSALS: u32 = 5;

/// A connection in use. When dropped, it is cleaned up if needed and returned to the pool.
pub(crate) struct Lease<D: Dial>(Option<Held<D>>);

struct Held<D: Dial> {
    // Dropped before the permit, so that the next holder of the permit finds it in the pool.
    connection: bb8::PooledConnection<'static, Manager<D>>,
    _permit: OwnedSemaphorePermit,
}

const HELD: &str = "only a dropped one has no connection";

impl<D: Dial> Deref for Lease<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.0.as_ref().expect(HELD).connection
    }
}

impl<D: Dial> DerefMut for Lease<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.0.as_mut().expect(HELD).connection
    }
}

impl<D: Dial> Drop for Lease<D> {
    fn drop(&mut self) {
        let Some(mut held) = self.0.take().filter(|held| held.connection.needs_cleanup()) else { return };
        // With its permit, so that the store never has more connections than the pool has slots.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { held.connection.clean_up().await });
        }
    }
}

impl<D: Dial> Pool<D> {
    pub(crate) fn new(dialer: D, limits: &Limits) -> Result<Self> {
        let (failures, queue) = (watch::Sender::new(None), Arc::new(Queue::new(limits.max)?));
        let limit = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        let pool = bb8::Pool::builder()
            .max_size(limits.max)
            .test_on_check_out(false)
            // Waiting calls get the error, and the next call tries again.
            .retry_connection(false)
            // The call's deadline limits the wait.
            .connection_timeout(Duration::MAX / 4)
            .idle_timeout(limit(limits.idle_timeout))
            .max_lifetime(limit(limits.max_lifetime))
            .reaper_rate(Duration::from_secs(5))
            .queue_strategy(QueueStrategy::Lifo)
            // bb8 reports a failure after it has counted it, so that calls can ask again at once.
            .error_sink(Box::new(Failures(failures.clone())))
            .build_unchecked(Manager { dialer, queue: queue.clone(), failed: watch::Sender::default() });
        Ok(Self { pool, queue, withheld: Arc::default(), failures })
    }

    /// Waits for a usable connection, first come, first served. None once the pool is retired.
    async fn lease(&self) -> Result<Option<Lease<D>>> {
        let Some(mut permit) = self.queue.permit().await else { return Ok(None) };
        let mut refusals = 0;
        loop {
            match self.pooled().await {
                Ok(connection) if !connection.is_dead() => {
                    return Ok(Some(Lease(Some(Held { connection, _permit: permit }))));
                }
                // The pool closes a dead connection that is returned, so the next attempt gets another
                // connection.
                Ok(_) => {}
                Err(_) if self.queue.is_closed() => return Ok(None),
                // The server accepts no more connections, but a call of this store will return one.
                Err(error) if error.kind() == ErrorKind::Busy && self.open() > 0 => {
                    self.withhold(permit);
                    let Some(next) = self.queue.permit().await else { return Ok(None) };
                    permit = next;
                }
                // The first connections of a pool are opened together, and a server counts a closed one for a
                // while: another attempt may be accepted.
                Err(error) if error.kind() == ErrorKind::Busy && refusals < MAX_REFUSALS => refusals += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Withholds a permit for which there is no connection, so that there are only as many permits as
    /// connections. Withheld permits return one at a time.
    fn withhold(&self, permit: OwnedSemaphorePermit) {
        let (max, connections) = (self.max(), self.open().max(1));
        let one_more = |withheld: u32| (max - withheld > connections).then_some(withheld + 1);
        let Ok(before) = self.withheld.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more) else {
            return;
        };
        let withheld = self.withheld.clone();
        tokio::spawn(async move {
            tokio::time::sleep(WITHHOLD_TIME * (before + 1)).await;
            withheld.fetch_sub(1, Ordering::SeqCst);
            drop(permit);
        });
    }

    async fn pooled(&self) -> Result<bb8::PooledConnection<'static, Manager<D>>> {
        match self.pool.get_owned().now_or_never() {
            Some(connection) => connection.map_err(reason::<D>),
            // Boxed, because few calls get here.
            None => self.opened().boxed().await,
        }
    }

    async fn opened(&self) -> Result<bb8::PooledConnection<'static, Manager<D>>> {
        let mut failure = self.failures.subscribe();
        // `get_owned` asks for a new connection, so that a failure from here on concerns this call.
        tokio::select! {
            biased;
            connection = self.pool.get_owned() => connection.map_err(reason::<D>),
            Ok(()) = failure.changed() => {
                Err(failure.borrow_and_update().clone().unwrap_or_else(|| connection_timeout(D::SERVER)))
            }
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.pool.state();
        PoolStats {
            max: self.max(),
            open: state.connections,
            idle: state.idle_connections,
            waiting: self.queue.waiting(),
        }
    }

    /// The maximum number of connections.
    fn max(&self) -> u32 {
        self.pool.config().max_size
    }

    pub(crate) fn open(&self) -> u32 {
        self.pool.state().connections
    }
}

impl<D: Dial> Retire for Pool<D> {
    /// Ends the wait of queued calls and closes idle connections.
    fn retire(&self) {
        self.queue.close();
        while self.pool.state().idle_connections > 0 {
            // A returned connection is closed.
            drop(self.pool.get_owned().now_or_never());
        }
    }
}

impl<D: Dial> Current<Pool<D>> {
    /// Waits for a connection of the pool in use, first come, first served.
    pub(crate) async fn lease(&self) -> Result<Lease<D>> {
        loop {
            // None if the pool was replaced meanwhile.
            if let Some(lease) = self.get()?.lease().await? {
                return Ok(lease);
            }
        }
    }
}

/// What bb8 asks for connections.
struct Manager<D> {
    dialer: D,
    /// Closed once the pool is retired; returned connections are closed then.
    queue: Arc<Queue>,
    /// When the last attempt to connect failed.
    failed: watch::Sender<Option<Instant>>,
}

/// The pause after a failed attempt to connect. Without it a server that refuses connections would be dialed
/// as often as calls are made.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl<D: Dial> ManageConnection for Manager<D> {
    type Connection = Box<D::Connection>;
    type Error = Error;

    async fn connect(&self) -> Result<Box<D::Connection>> {
        let failed = *self.failed.borrow();
        if let Some(failed) = failed {
            tokio::time::sleep_until(failed + RETRY_PAUSE).await;
        }
        let started = Instant::now();
        let mut result = self.dialer.dial().await;
        self.failed.send_replace(result.is_err().then(Instant::now));
        // A pool that was retired meanwhile would keep it idle while one of its connections is in use.
        if result.is_ok() && self.queue.is_closed() {
            result = Err(retired());
        }
        match &result {
            Ok(_) => tracing::debug!(elapsed = ?started.elapsed(), "connected to {}", D::SERVER),
            Err(error) => tracing::debug!(%error, code = error.code(), "could not connect to {}", D::SERVER),
        }
        result.map(Box::new)
    }

    async fn is_valid(&self, _: &mut Box<D::Connection>) -> Result<()> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut Box<D::Connection>) -> bool {
        connection.is_dead() || connection.needs_cleanup() || self.queue.is_closed()
    }
}

#[cold]
fn retired() -> Error {
    Error::new(ErrorKind::Unavailable, "the pool was replaced while a connection was being opened")
}

/// Passes errors of connecting to the waiting calls: bb8 would let them wait.
#[derive(Clone, Debug)]
struct Failures(watch::Sender<Option<Error>>);

impl ErrorSink<Error> for Failures {
    fn sink(&self, error: Error) {
        self.0.send_replace(Some(error));
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<Error>> {
        Box::new(self.clone())
    }
}

fn reason<D: Dial>(error: RunError<Error>) -> Error {
    match error {
        RunError::User(error) => error,
        RunError::TimedOut => connection_timeout(D::SERVER),
    }
}
