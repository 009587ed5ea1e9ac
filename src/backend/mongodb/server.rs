//! The servers as one store sees them: calls with deadlines, on leased turns.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use mongodb::error::Result as DriverResult;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    MongoDb, MongoDbOptions,
    desk::Plans,
    error,
    pool::{Lane, Lease, NoLease},
    topology::Writable,
};
use crate::{
    Error, ErrorKind, Result,
    backend::remote::{
        Effect,
        gate::{Entry, Gate},
        later,
    },
    layer::time_left,
};

/// How often an upsert is tried that another one of the same new document came before.
pub(super) const UPSERT_ATTEMPTS: u32 = 10;

/// How long after its deadline a write may keep its turn that the server does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Server {
    pub(super) config: MongoDbOptions,
    /// None once the store is closed.
    lane: ArcSwapOption<Lane>,
    /// The calls under way, which closing waits for.
    calls: Gate,
    /// When the password was last asked for after a refusal: one call at a time asks.
    asked: Mutex<Option<Instant>>,
    pub(super) plans: Plans,
}

impl Server {
    pub(super) async fn new(config: MongoDbOptions) -> Result<Self> {
        let password = config.password_now().await?;
        let lane = Arc::new(Lane::new(&config, config.pool_size, password).await?);
        Ok(Self {
            config,
            lane: ArcSwapOption::new(Some(lane)),
            calls: Gate::new(),
            asked: Mutex::default(),
            plans: Plans::default(),
        })
    }

    pub(super) fn lane(&self) -> Result<Arc<Lane>> {
        self.lane.load_full().ok_or_else(Error::closed)
    }

    /// Whether many documents are read as they were at one moment. False while no server is known.
    pub(super) fn has_snapshots(&self) -> bool {
        self.lane().is_ok_and(|lane| {
            let writable = lane.topology.writable();
            writable != Writable::None && lane.has_snapshots(writable)
        })
    }

    pub(super) async fn resize(&self, max: u32) -> Result<()> {
        let old = self.lane()?;
        let password = self.config.password_now().await?;
        self.replace(&old, Lane::new(&self.config, max, password).await?)
    }

    /// The driver takes a password once. So when a server refuses it, its source is asked again, and a client with another one
    /// takes the place of the refused one. False: the password is the same.
    async fn log_in_again(&self, refused: &Arc<Lane>) -> Result<bool> {
        let begun = Instant::now();
        let mut asked = self.asked.lock().await;
        if !Arc::ptr_eq(&self.lane()?, refused) {
            return Ok(true);
        }
        // Who waited here has the answer of the one before.
        if asked.is_none_or(|asked| asked < begun) {
            let password = self.config.password_now().await?;
            *asked = Some(Instant::now());
            if password != refused.password {
                self.replace(refused, Lane::new(&self.config, refused.max, password).await?)?;
                return Ok(true);
            }
        }
        refused.topology.settle_refusal();
        Ok(false)
    }

    fn replace(&self, old: &Arc<Lane>, lane: Lane) -> Result<()> {
        let lane = Arc::new(lane);
        // Unless it was closed, or replaced, meanwhile.
        let found = self.lane.compare_and_swap(old, Some(lane.clone()));
        match &*found {
            Some(found) if Arc::ptr_eq(found, old) => old.retire(),
            Some(_) => lane.retire(),
            None => return Err(Error::closed()),
        }
        Ok(())
    }

    /// Waits until the calls under way are done, rolls back what is open, and disconnects. After the deadline it waits for
    /// nothing.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let deadline = later(Instant::now(), deadline);
        let late = |_| Error::new(ErrorKind::Timeout, "closed, while calls were still under way");
        let all = timeout_at(deadline, self.calls.close()).await.map_err(late);
        let Some(lane) = self.lane.swap(None) else { return all };
        lane.retire();
        // The server would keep what they hold for a minute.
        lane.transactions.roll_back();
        drop(timeout_at(deadline, lane.transactions.settled()).await);
        // It tells the servers, which may not listen. What is still held would keep it waiting.
        let goodbye = tokio::spawn(lane.client.clone().shutdown().immediate(true).into_future());
        drop(timeout_at(deadline, goodbye).await);
        all
    }
}

/// One call of an operation: it has a deadline, and a store that is being closed waits for it.
pub(super) struct Call<'s> {
    server: &'s Server,
    deadline: Instant,
    _under_way: Entry<'s>,
}

impl MongoDb {
    pub(super) fn call(&self) -> Result<Call<'_>> {
        let under_way = self.server.calls.enter()?;
        Ok(Call {
            server: &self.server,
            deadline: later(Instant::now(), time_left(self.deadline)),
            _under_way: under_way,
        })
    }
}

impl Call<'_> {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When the server is to give up: a little before our deadline, so that it is the server who says so.
    pub(super) fn server_time(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        left.mul_f64(0.95).clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60))
    }

    /// A turn, in time. Until here nothing was sent.
    pub(super) async fn lease(&self) -> Result<Lease> {
        let wait = async {
            loop {
                let lane = self.server.lane()?;
                match lane.clone().lease().await {
                    Ok(lease) => return Ok(lease),
                    Err(NoLease::Retired) => {}
                    Err(NoLease::Refused) => drop(self.server.log_in_again(&lane).await?),
                    Err(NoLease::Failed(error)) => return Err(error),
                }
            }
        };
        self.in_turn(wait).await
    }

    /// A turn on this lane, even if another one has taken its place: where a session is, its requests must go.
    pub(super) async fn lease_of(&self, lane: &Arc<Lane>) -> Result<Lease> {
        let wait = async {
            lane.clone().lease_kept().await.map_err(|none| match none {
                NoLease::Failed(error) => error,
                NoLease::Retired | NoLease::Refused => Error::closed(),
            })
        };
        self.in_turn(wait).await
    }

    async fn in_turn(&self, wait: impl Future<Output = Result<Lease>>) -> Result<Lease> {
        if Instant::now() >= self.deadline {
            return Err(over());
        }
        timeout_at(self.deadline, wait).await.unwrap_or_else(|_| match self.server.lane() {
            Ok(lane) if lane.topology.writable() == Writable::None => Err(lane.topology.why_none()),
            _ => Err(Error::new(ErrorKind::Timeout, "no turn to speak to the MongoDB server in time")),
        })
    }

    /// The answer to a question, in time.
    pub(super) async fn ask<T>(&self, request: impl IntoFuture<Output = DriverResult<T>>) -> Result<T> {
        self.answer(request).await?.map_err(|error| error::of_request(&error, Effect::Read))
    }

    /// The driver closes a connection on which a request was cut off instead of giving it to the next call.
    async fn answer<T>(&self, request: impl IntoFuture<Output = DriverResult<T>>) -> Result<DriverResult<T>> {
        if Instant::now() >= self.deadline {
            return Err(over());
        }
        timeout_at(self.deadline, request.into_future()).await.map_err(|_| no_reply(Effect::Read))
    }

    /// The answer to a question that is asked again where a server refused the login and there is another password.
    pub(super) async fn read<T, F>(&self, request: impl Fn(Lease) -> F) -> Result<T>
    where
        F: Future<Output = DriverResult<T>>,
    {
        let lease = self.lease().await?;
        let lane = lease.lane.clone();
        let result = match self.answer(request(lease)).await? {
            // The driver may tell of the lost connection that made it log in.
            Err(error)
                if (error::refuses_login(&error) || lane.topology.is_refused())
                    && self.has_another_login(&lane).await? =>
            {
                self.answer(request(self.lease().await?)).await?
            }
            result => result,
        };
        result.map_err(|error| error::of_request(&error, Effect::Read))
    }

    async fn has_another_login(&self, refused: &Arc<Lane>) -> Result<bool> {
        let asked = timeout_at(self.deadline, self.server.log_in_again(refused)).await;
        asked.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no password was given in time")))
    }

    /// The answer to a write, in time.
    ///
    /// It goes on in a task of its own when no call waits for it any more: the driver would give its session to the next write,
    /// and the server makes that one wait for this one.
    pub(super) async fn write<T, F>(&self, lease: Lease, request: impl Fn(Lease) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = DriverResult<T>> + Send + 'static,
    {
        let lane = lease.lane.clone();
        let result = match self.detached(Effect::Write, request(lease)).await? {
            Err(error) if error::refuses_login(&error) && self.has_another_login(&lane).await? => {
                let lease = self.lease().await?;
                self.detached(Effect::Write, request(lease)).await?
            }
            result => result,
        };
        result.map_err(|error| error::of_request(&error, Effect::Write))
    }

    /// Work in a task of its own, which goes on whoever waits for it: to its end, or until [`PATIENCE`] after the deadline. Then
    /// the server has given it up, or is not there any more, and its turn is for another call.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        effect: Effect,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        if Instant::now() >= self.deadline {
            return Err(over());
        }
        let work = timeout_at(later(self.deadline, PATIENCE), work);
        match timeout_at(self.deadline, tokio::spawn(work)).await {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(Ok(Err(_))) => Err(no_reply(effect)),
            Ok(Err(_)) => {
                let panicked = Error::new(ErrorKind::Internal, "a request to the MongoDB server panicked");
                Err(panicked.with_outcome(effect.when_lost()))
            }
            Err(_) => Err(no_reply(effect)),
        }
    }
}

/// An upsert, and again while another one of the same new document came before it.
pub(super) async fn upserted<T, R: IntoFuture<Output = DriverResult<T>>>(
    request: impl Fn() -> R,
) -> DriverResult<T> {
    let mut attempt = 1;
    loop {
        match request().await {
            Err(error) if error::lost_upsert(&error) && attempt < UPSERT_ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

#[cold]
pub(super) fn no_reply(effect: Effect) -> Error {
    Error::new(ErrorKind::Timeout, "no reply from the MongoDB server in time")
        .with_outcome(effect.when_lost())
}

#[cold]
fn over() -> Error {
    Error::new(ErrorKind::Timeout, "the time was over before the request was sent")
}
