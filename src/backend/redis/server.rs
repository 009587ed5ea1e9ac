//! The server behind all handles of a store: its connections, and requests over them.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bb8::{Pool, PooledConnection, RunError};
use futures_util::FutureExt;
use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout_at},
};

use super::{
    Redis, RedisConfig,
    connection::{Connection, Dialer},
    failure,
};
use crate::{Error, ErrorKind, Outcome, Result};

pub(super) struct Server {
    config: RedisConfig,
    /// None once the store is closed. bb8's pool can't be resized, so a new one takes its place.
    pool: ArcSwapOption<Pool<Dialer>>,
    failures: watch::Sender<Option<Error>>,
    /// One permit a call; closing takes all of them, and so waits for the calls under way.
    calls: Semaphore,
}

/// More calls than can ever be under way at once.
const CALLS: u32 = 1 << 28;

/// Whether a request may change something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

impl Effect {
    /// What is known of a request that was sent and has no answer.
    pub(super) const fn when_lost(self) -> Outcome {
        match self {
            Self::Read => Outcome::NotApplied,
            Self::Write => Outcome::Unknown,
        }
    }
}

impl Server {
    pub(super) fn new(config: &RedisConfig) -> Result<Self> {
        let server = Self {
            config: config.clone(),
            pool: ArcSwapOption::empty(),
            failures: watch::Sender::new(None),
            calls: Semaphore::new(CALLS as usize),
        };
        server.pool.store(Some(Arc::new(server.connections(config.pool_size)?)));
        Ok(server)
    }

    fn connections(&self, max: u32) -> Result<Pool<Dialer>> {
        if max == 0 {
            return Err(Error::new(ErrorKind::InvalidValue, "a pool has at least one connection"));
        }
        let dialer = Dialer::new(&self.config, self.failures.clone())?;
        Ok(Pool::builder()
            .max_size(max)
            .min_idle(self.config.min_idle.min(max))
            .test_on_check_out(false)
            // Whoever waits for a connection is told why there is none, and the next call tries again.
            .retry_connection(false)
            // A call's own deadline decides.
            .connection_timeout(Duration::MAX / 4)
            .max_lifetime(None)
            .build_unchecked(dialer))
    }

    pub(super) fn pool(&self) -> Result<Arc<Pool<Dialer>>> {
        self.pool.load_full().ok_or_else(Error::closed)
    }

    /// Puts a pool of another size in place. Calls under way finish on the connections of the old one.
    pub(super) fn resize(&self, max: u32) -> Result<()> {
        let pool = Arc::new(self.connections(max)?);
        self.pool.store(Some(pool));
        Ok(())
    }

    pub(super) fn calls_under_way(&self) -> usize {
        CALLS as usize - self.calls.available_permits()
    }

    /// Only a call that waits for a connection listens for the failure to open one.
    pub(super) fn calls_that_wait(&self) -> usize {
        self.failures.receiver_count()
    }

    /// Waits until the calls under way are done, then disconnects. After the deadline it does not wait for them.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let all = tokio::time::timeout(deadline, self.calls.acquire_many(CALLS)).await;
        self.calls.close();
        self.pool.store(None);
        match all {
            // Or another handle has closed it.
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "closed, while calls were still under way")),
        }
    }

    /// A handle on a living connection.
    async fn connection(&self) -> Result<Connection> {
        let pool = self.pool()?;
        loop {
            let connection = match pool.get().now_or_never() {
                Some(checked_out) => handle(checked_out)?,
                None => {
                    let mut failure = self.failures.subscribe();
                    // It asks for a new connection, so a failure from here on is news.
                    tokio::select! {
                        biased;
                        checked_out = pool.get() => handle(checked_out)?,
                        Ok(()) = failure.changed() => {
                            let error = failure.borrow().clone();
                            return Err(error.unwrap_or_else(no_connection));
                        }
                    }
                }
            };
            // A dead one is dropped by the pool when it is given back, so that the next one is another.
            if !connection.is_dead() {
                return Ok(connection);
            }
        }
    }
}

/// The checked-out connection goes back at once: a handle is all that a call needs.
fn handle(checked_out: Result<PooledConnection<'_, Dialer>, RunError<Error>>) -> Result<Connection> {
    match checked_out {
        Ok(connection) => Ok(connection.clone()),
        Err(RunError::User(error)) => Err(error),
        Err(RunError::TimedOut) => Err(no_connection()),
    }
}

#[cold]
fn no_connection() -> Error {
    Error::new(ErrorKind::Timeout, "no connection to the Redis server in time")
}

/// One call of an operation: it has a deadline, and a store that is being closed waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Instant,
    _under_way: SemaphorePermit<'s>,
}

impl Redis {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        let permit = self.server.calls.try_acquire().map_err(|_| Error::closed())?;
        Ok(Call { server: &self.server, deadline: later(self.deadline), _under_way: permit })
    }
}

/// A deadline that is too far away to be told is as good as one that is very far away.
fn later(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration).unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 60 * 60))
}

/// One command, or a pipeline of some.
pub(super) trait Request: Sync {
    type Reply: Send;
    fn send(&self, driver: MultiplexedConnection) -> impl Future<Output = RedisResult<Self::Reply>> + Send;
}

impl Request for Cmd {
    type Reply = Value;

    async fn send(&self, mut driver: MultiplexedConnection) -> RedisResult<Value> {
        driver.req_packed_command(self).await?.extract_error()
    }
}

impl Request for Pipeline {
    /// A reply each; errors among them are values.
    type Reply = Vec<Value>;

    async fn send(&self, mut driver: MultiplexedConnection) -> RedisResult<Vec<Value>> {
        driver.req_packed_commands(self, 0, self.len()).await
    }
}

impl Call<'_> {
    /// Sends a request and waits for its reply: one round trip.
    pub(super) async fn send<R: Request>(&self, effect: Effect, request: &R) -> Result<R::Reply> {
        let connection =
            timeout_at(self.deadline, self.server.connection()).await.map_err(|_| no_connection())??;
        let patience = later(self.server.config.read_timeout);
        let reply = timeout_at(self.deadline.min(patience), request.send(connection.driver.clone())).await;
        match reply {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                // A demoted master stays one: the next connection may find the new one.
                if error.is_unrecoverable_error() || error.code() == Some("READONLY") {
                    connection.abandon();
                }
                Err(failure::of_request(&error, effect))
            }
            Err(_) => {
                if patience <= Instant::now() {
                    connection.abandon();
                }
                Err(Error::new(ErrorKind::Timeout, "no reply from the Redis server in time")
                    .with_outcome(effect.when_lost()))
            }
        }
    }
}
