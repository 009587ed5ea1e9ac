//! Connections: who may have one, counted and resized.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bb8::{ErrorSink, Pool, PooledConnection, QueueStrategy, RunError};
use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Postgres,
    connection::{Connection, Dialer},
    options::PostgresOptions,
};
use crate::{Error, ErrorKind, PoolStats, Pooled, Result, backend::remote::Waiting};

/// A pool of one size, with a fair queue in front: bb8 lets a caller that comes later go first.
///
/// bb8 can't be resized, so a pool of another size takes its place, and this one is retired: whoever waits is sent to the new
/// one, and connections are closed as they come back.
pub(super) struct Lane {
    pool: Pool<Dialer>,
    turns: Arc<Semaphore>,
    /// How many turns are laid aside, since the server gives no connection for them.
    aside: Arc<AtomicU32>,
    waiting: AtomicU32,
    failures: watch::Sender<Option<Error>>,
}

/// When a turn that was laid aside is tried again, for each that is.
const ASIDE: Duration = Duration::from_secs(1);

/// A connection, and the right to use it. Given back when it is dropped, and tidied up before if that is needed.
pub(super) struct Lease(Option<Held>);

struct Held {
    // Before the permit, so that the next one finds it.
    connection: PooledConnection<'static, Dialer>,
    _turn: OwnedSemaphorePermit,
}

const HELD: &str = "only a dropped lease has no connection";

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0.as_ref().expect(HELD).connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0.as_mut().expect(HELD).connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut held) = self.0.take().filter(|held| held.connection.is_untidy()) else { return };
        // With its permit, so that the server never has more connections of ours than there are places in the pool.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { held.connection.tidy().await });
        }
    }
}

/// Why there is no lease.
pub(super) enum NoLease {
    Retired,
    Failed(Error),
}

impl Lane {
    pub(super) fn new(config: &PostgresOptions, tls: MakeRustlsConnect, max: u32) -> Result<Self> {
        if max == 0 {
            return Err(Error::new(ErrorKind::InvalidValue, "a pool has at least one connection"));
        }
        let (failures, turns) = (watch::Sender::new(None), Arc::new(Semaphore::new(max as usize)));
        let dialer = Dialer::new(config, tls, turns.clone())?;
        let limit = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        let pool = Pool::builder()
            .max_size(max)
            .test_on_check_out(false)
            // Whoever waits for a connection is told why there is none, and the next call tries again.
            .retry_connection(false)
            // A call's own deadline decides.
            .connection_timeout(Duration::MAX / 4)
            .idle_timeout(limit(config.idle_timeout))
            .max_lifetime(limit(config.max_lifetime))
            .reaper_rate(Duration::from_secs(5))
            .queue_strategy(QueueStrategy::Lifo)
            // It hears of a failure after the pool has counted it, so whoever is told can ask again.
            .error_sink(Box::new(Failures(failures.clone())))
            .build_unchecked(dialer);
        Ok(Self { pool, turns, aside: Arc::default(), waiting: AtomicU32::new(0), failures })
    }

    /// A living connection, in the order in which it was asked for.
    pub(super) async fn lease(&self) -> Result<Lease, NoLease> {
        let mut turn = self.turn().await?;
        loop {
            match self.connection().await {
                Ok(connection) if !connection.is_dead() => {
                    return Ok(Lease(Some(Held { connection, _turn: turn })));
                }
                // A dead one is closed by the pool when it is given back, so that the next one is another.
                Ok(_) => {}
                // Those who wait here are sent to the pool that took this one's place.
                Err(_) if self.turns.is_closed() => return Err(NoLease::Retired),
                // The server has no more, but some are ours: one of them will be given back.
                Err(error) if error.kind() == ErrorKind::Busy && self.pool.state().connections > 0 => {
                    self.lay_aside(turn);
                    turn = self.turn().await?;
                }
                Err(error) => return Err(NoLease::Failed(error)),
            }
        }
    }

    /// Never past those who wait: a permit that is given back is theirs before it is free.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, NoLease> {
        if let Ok(turn) = self.turns.clone().try_acquire_owned() {
            return Ok(turn);
        }
        let _waits = Waiting::begin(&self.waiting);
        self.turns.clone().acquire_owned().await.map_err(|_| NoLease::Retired)
    }

    /// Keeps a turn for which there is no connection out of use for a while, so that there are as many as connections. They come
    /// back one at a time. As many as there are connections stay.
    fn lay_aside(&self, turn: OwnedSemaphorePermit) {
        let (max, connections) = (self.max(), self.pool.state().connections.max(1));
        let lay = |aside: u32| (max - aside > connections).then_some(aside + 1);
        let Ok(before) = self.aside.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lay) else { return };
        let aside = self.aside.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ASIDE * (before + 1)).await;
            aside.fetch_sub(1, Ordering::SeqCst);
            drop(turn);
        });
    }

    async fn connection(&self) -> Result<PooledConnection<'static, Dialer>> {
        if let Some(connection) = self.pool.get_owned().now_or_never() {
            return connection.map_err(reason);
        }
        let mut failure = self.failures.subscribe();
        // It asks for a new connection, so a failure from here on is news.
        tokio::select! {
            biased;
            connection = self.pool.get_owned() => connection.map_err(reason),
            Ok(()) = failure.changed() => {
                Err(failure.borrow_and_update().clone().unwrap_or_else(no_connection))
            }
        }
    }

    /// Sends those who wait away and closes the connections that nobody uses.
    pub(super) fn retire(&self) {
        self.turns.close();
        while self.pool.state().idle_connections > 0 {
            // Given back at once, and closed then.
            drop(self.pool.get_owned().now_or_never());
        }
    }

    fn stats(&self) -> PoolStats {
        let state = self.pool.state();
        PoolStats {
            max: self.max(),
            open: state.connections,
            idle: state.idle_connections,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// The most connections.
    pub(super) fn max(&self) -> u32 {
        self.pool.config().max_size
    }

    pub(super) fn open(&self) -> u32 {
        self.pool.state().connections
    }
}

/// Tells the calls that wait for a connection why there is none: bb8 lets them wait.
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
        RunError::TimedOut => no_connection(),
    }
}

#[cold]
pub(super) fn no_connection() -> Error {
    Error::new(ErrorKind::Timeout, "no connection to the PostgreSQL server in time")
}

impl Pooled for Postgres {
    async fn pool_stats(&self) -> Result<PoolStats> {
        Ok(self.server.lane()?.stats())
    }

    /// Calls under way finish on the old connections, and those that wait go on waiting for new ones.
    async fn resize_pool(&self, max: u32) -> Result<()> {
        // Held, so that a store which is being closed does not get a new pool afterwards.
        let _call = self.call()?;
        self.server.resize(max)
    }
}
