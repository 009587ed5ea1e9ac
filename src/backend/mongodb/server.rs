//! A store's connection to its servers: calls with deadlines, on permits of the pool.

use std::{sync::Arc, time::Duration};

use mongodb::error::Result as DriverResult;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    LABEL, MongoDb, MongoDbOptions,
    error::{self, SERVER},
    pool::{Permit, Pool},
    topology::{NoPermit, Writable},
    watch::watching::Watching,
};
use crate::{
    Error, ErrorKind, Result,
    backend::remote::{Effect, call, connection_timeout, current::Current, gate::Gate, later, reply_timeout},
};

/// How long after its deadline an unanswered write keeps its permit.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

pub(super) struct Server {
    pub(super) options: MongoDbOptions,
    pool: Current<Pool>,
    /// The calls under way, which closing waits for.
    calls: Gate,
    /// When the password was last read after a refused login. The lock lets one call at a time read it.
    password_read: Mutex<Option<Instant>>,
    /// Runs the plans of this store one after another, so that they do not conflict.
    pub(super) plans: Arc<Mutex<()>>,
    pub(super) watching: Watching,
}

impl Server {
    pub(super) async fn new(options: MongoDbOptions) -> Result<Self> {
        let password = options.password_now().await?;
        let pool = Current::new(Pool::new(&options, options.pool_size, password).await?);
        Ok(Self {
            options,
            pool,
            calls: Gate::new(),
            password_read: Mutex::default(),
            plans: Arc::default(),
            watching: Watching::new(LABEL),
        })
    }

    pub(super) fn pool(&self) -> Result<Arc<Pool>> {
        self.pool.get()
    }

    /// Whether queries of many documents read one snapshot. False while no server is known.
    pub(super) fn has_snapshots(&self) -> bool {
        self.pool().is_ok_and(|pool| pool.has_snapshots(pool.topology.writable()))
    }

    pub(super) async fn resize(&self, max: u32) -> Result<()> {
        let old = self.pool()?;
        let password = self.options.password_now().await?;
        self.pool.replace(&old, Pool::new(&self.options, max, password).await?)
    }

    /// Replaces a pool whose login was refused, if the password has changed. Returns whether it was replaced.
    ///
    /// The driver takes a password once, when its client is created.
    async fn log_in_again(&self, refused: &Arc<Pool>) -> Result<bool> {
        let begun = Instant::now();
        let mut password_read = self.password_read.lock().await;
        if !Arc::ptr_eq(&self.pool()?, refused) {
            return Ok(true);
        }
        // A call that waited for the lock uses the result of the call that held it.
        if password_read.is_none_or(|read| read < begun) {
            let password = self.options.password_now().await?;
            *password_read = Some(Instant::now());
            if password != refused.password {
                // Boxed, because the future of each call holds this one.
                let new = Box::pin(Pool::new(&self.options, refused.max, password)).await?;
                self.pool.replace(refused, new)?;
                return Ok(true);
            }
        }
        refused.topology.clear_refusal();
        Ok(false)
    }

    /// Ends watches, waits for calls under way, rolls back open transactions, and disconnects, all within the
    /// deadline.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let end = later(Instant::now(), deadline);
        self.watching.feed.close();
        let drained = self.calls.close_within(deadline).await;
        let Some(pool) = self.pool.close() else { return drained };
        // Otherwise the server keeps their locks for a minute.
        pool.transactions.roll_back();
        drop(timeout_at(end, pool.transactions.rollbacks_done()).await);
        drop(timeout_at(end, self.watching.turn()).await);
        // `shutdown` sends requests, which may get no reply. Without `immediate` it waits for cursors and
        // sessions.
        let shutdown = tokio::spawn(pool.client.clone().shutdown().immediate(true).into_future());
        drop(timeout_at(end, shutdown).await);
        drained
    }
}

/// A call of an operation on the servers.
pub(super) type Call<'s> = call::Call<'s, Server>;

impl MongoDb {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        Call::begin(&self.server, &self.server.calls, self.deadline)
    }
}

impl Call<'_> {
    /// The server's time limit (`maxTimeMS`): a little less, so that the server reports the timeout.
    pub(super) fn server_time(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.mul_f64(0.95).clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60))
    }

    /// Waits for a permit of the current pool. An error means that nothing was sent.
    pub(super) async fn permit(&self) -> Result<Permit> {
        self.permit_of(None).await
    }

    /// Waits for a permit of this pool, even if it was replaced: a session belongs to its client. None: of
    /// the current pool.
    pub(super) async fn permit_of(&self, owner: Option<&Arc<Pool>>) -> Result<Permit> {
        let permit = async {
            loop {
                let pool = owner.map_or_else(|| self.server.pool(), |pool| Ok(pool.clone()))?;
                match pool.clone().acquire(owner.is_some()).await {
                    Ok(permit) => return Ok(permit),
                    Err(NoPermit::Retired) => {}
                    Err(NoPermit::Refused) => drop(self.server.log_in_again(&pool).await?),
                    Err(NoPermit::Failed(error)) => return Err(error),
                }
            }
        };
        let late = || match self.server.pool() {
            Ok(pool) if pool.topology.writable() == Writable::None => pool.topology.selection_error(),
            _ => connection_timeout(SERVER),
        };
        self.wait(permit, late).await
    }

    /// Sends one request that writes nothing.
    pub(super) async fn ask<T>(&self, request: impl IntoFuture<Output = DriverResult<T>>) -> Result<T> {
        self.reply(request).await?.map_err(|error| error::of_request(&error, Effect::Read))
    }

    /// Waits for the reply until the deadline. The driver closes the connection of a request that is dropped.
    async fn reply<T>(&self, request: impl IntoFuture<Output = DriverResult<T>>) -> Result<DriverResult<T>> {
        self.wait(async { Ok(request.await) }, || reply_timeout(SERVER, Effect::Read)).await
    }

    /// Sends a read, and sends it again if a server refused the login and the password has changed.
    pub(super) async fn read<T, F>(&self, request: impl Fn(Permit) -> F) -> Result<T>
    where
        F: Future<Output = DriverResult<T>>,
    {
        let permit = self.permit().await?;
        let pool = permit.pool.clone();
        let result = match self.reply(request(permit)).await? {
            // The driver may report the lost connection that made it log in, instead of the refused login.
            Err(error)
                if (error::refuses_login(&error) || pool.topology.is_refused())
                    && self.has_new_login(&pool).await? =>
            {
                self.reply(request(self.permit().await?)).await?
            }
            result => result,
        };
        result.map_err(|error| error::of_request(&error, Effect::Read))
    }

    async fn has_new_login(&self, refused: &Arc<Pool>) -> Result<bool> {
        let result = timeout_at(self.deadline, self.server.log_in_again(refused)).await;
        result.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "timed out reading the password")))
    }

    /// Sends a write, and sends it again if a server refused the login and the password has changed.
    ///
    /// It goes on in its task if the call is dropped: otherwise the driver would give its session to the next
    /// write, which the server would hold back until this one ends.
    pub(super) async fn write<T, F>(&self, permit: Permit, request: impl Fn(Permit) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = DriverResult<T>> + Send + 'static,
    {
        let pool = permit.pool.clone();
        let result = match self.detached(Effect::Write, request(permit)).await? {
            Err(error) if error::refuses_login(&error) && self.has_new_login(&pool).await? => {
                let permit = self.permit().await?;
                self.detached(Effect::Write, request(permit)).await?
            }
            result => result,
        };
        result.map_err(|error| error::of_request(&error, Effect::Write))
    }

    /// Runs work in a task of its own, which goes on if the call is dropped: to its end, or until
    /// [`GRACE_PERIOD`] after the deadline. By then the server has stopped the work or can't be reached, so
    /// its permit can go to another call.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        effect: Effect,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let late = || reply_timeout(SERVER, effect);
        let work = timeout_at(later(self.deadline, GRACE_PERIOD), work);
        match self.wait(async { Ok(tokio::spawn(work).await) }, late).await? {
            Ok(result) => result.map_err(|_| late()),
            Err(_) => {
                let panicked = Error::new(ErrorKind::Internal, "a request to the MongoDB server panicked");
                Err(panicked.with_outcome(effect.when_lost()))
            }
        }
    }
}
