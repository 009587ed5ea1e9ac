//! The pool: fair, counted and resizable.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bb8::{ErrorSink, QueueStrategy, RunError};
use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, watch},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Postgres, connection::Connection, dial::Dialer, error::SERVER, options::PostgresOptions};
use crate::{
    Error, ErrorKind, PoolStats, Pooled, Result,
    backend::remote::{connection_timeout, queue::Queue},
};

/// A pool of one size, with a fair queue in front: bb8 lets later callers overtake.
///
/// bb8 can't be resized, so a pool of another size replaces this one, which is retired: waiting calls move to
/// the new one, and connections are closed as they are returned.
pub(super) struct Pool {
    pool: bb8::Pool<Dialer>,
    queue: Arc<Queue>,
    /// The number of permits that are withheld, because the server accepts no further connections.
    withheld: Arc<AtomicU32>,
    failures: watch::Sender<Option<Error>>,
}

/// How long a permit is withheld, multiplied by the number of withheld permits.
const WITHHOLD_TIME: Duration = Duration::from_secs(1);

/// A connection in use. When dropped, it is cleaned up if needed and returned to the pool.
pub(super) struct PooledConnection(Option<Held>);

struct Held {
    // Dropped before the permit, so that the next holder of the permit finds it in the pool.
    connection: bb8::PooledConnection<'static, Dialer>,
    _permit: OwnedSemaphorePermit,
}

const HELD: &str = "only a dropped one has no connection";

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0.as_ref().expect(HELD).connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0.as_mut().expect(HELD).connection
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(mut held) = self.0.take().filter(|held| held.connection.needs_cleanup()) else { return };
        // With its permit, so that the store never has more connections than the pool has slots.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { held.connection.clean_up().await });
        }
    }
}

impl Pool {
    pub(super) fn new(options: &PostgresOptions, tls: MakeRustlsConnect, max: u32) -> Result<Self> {
        let (failures, queue) = (watch::Sender::new(None), Arc::new(Queue::new(max)?));
        let dialer = Dialer::new(options, tls, queue.clone())?;
        let limit = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        let pool = bb8::Pool::builder()
            .max_size(max)
            .test_on_check_out(false)
            // Waiting calls get the error, and the next call tries again.
            .retry_connection(false)
            // The call's deadline limits the wait.
            .connection_timeout(Duration::MAX / 4)
            .idle_timeout(limit(options.idle_timeout))
            .max_lifetime(limit(options.max_lifetime))
            .reaper_rate(Duration::from_secs(5))
            .queue_strategy(QueueStrategy::Lifo)
            // bb8 reports a failure after it has counted it, so that calls can ask again at once.
            .error_sink(Box::new(Failures(failures.clone())))
            .build_unchecked(dialer);
        Ok(Self { pool, queue, withheld: Arc::default(), failures })
    }

    /// Waits for a usable connection, first come, first served. None once the pool is retired.
    pub(super) async fn get(&self) -> Result<Option<PooledConnection>> {
        let Some(mut permit) = self.queue.permit().await else { return Ok(None) };
        loop {
            match self.pooled().await {
                Ok(connection) if !connection.is_dead() => {
                    return Ok(Some(PooledConnection(Some(Held { connection, _permit: permit }))));
                }
                // The pool closes a dead connection that is returned, so the next attempt gets another
                // connection.
                Ok(_) => {}
                Err(_) if self.queue.is_closed() => return Ok(None),
                // The server accepts no more connections, but a call of this store will return one.
                Err(error) if error.kind() == ErrorKind::Busy && self.pool.state().connections > 0 => {
                    self.withhold(permit);
                    let Some(next) = self.queue.permit().await else { return Ok(None) };
                    permit = next;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Withholds a permit for which there is no connection, so that there are only as many permits as
    /// connections. Withheld permits return one at a time.
    fn withhold(&self, permit: OwnedSemaphorePermit) {
        let (max, connections) = (self.max(), self.pool.state().connections.max(1));
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

    async fn pooled(&self) -> Result<bb8::PooledConnection<'static, Dialer>> {
        if let Some(connection) = self.pool.get_owned().now_or_never() {
            return connection.map_err(reason);
        }
        let mut failure = self.failures.subscribe();
        // `get_owned` asks for a new connection, so that a failure from here on concerns this call.
        tokio::select! {
            biased;
            connection = self.pool.get_owned() => connection.map_err(reason),
            Ok(()) = failure.changed() => {
                Err(failure.borrow_and_update().clone().unwrap_or_else(|| connection_timeout(SERVER)))
            }
        }
    }

    /// Ends the wait of queued calls and closes idle connections.
    pub(super) fn retire(&self) {
        self.queue.close();
        while self.pool.state().idle_connections > 0 {
            // A returned connection is closed.
            drop(self.pool.get_owned().now_or_never());
        }
    }

    fn stats(&self) -> PoolStats {
        let state = self.pool.state();
        PoolStats {
            max: self.max(),
            open: state.connections,
            idle: state.idle_connections,
            waiting: self.queue.waiting(),
        }
    }

    /// The maximum number of connections.
    pub(super) fn max(&self) -> u32 {
        self.pool.config().max_size
    }

    pub(super) fn open(&self) -> u32 {
        self.pool.state().connections
    }
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

fn reason(error: RunError<Error>) -> Error {
    match error {
        RunError::User(error) => error,
        RunError::TimedOut => connection_timeout(SERVER),
    }
}

impl Pooled for Postgres {
    async fn pool_stats(&self) -> Result<PoolStats> {
        Ok(self.server.pool()?.stats())
    }

    /// Running calls finish on the old connections, and waiting calls wait for new ones.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Held, so that a store that is being closed does not get a new pool.
        let _call = self.call()?;
        self.server.resize(max)
    }
}
