//! The servers as one store sees them: calls with deadlines, on leased turns.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use mongodb::error::Result as DriverResult;
use tokio::time::{Instant, timeout_at};

use super::{
    MongoDb, MongoDbConfig,
    desk::Plans,
    failure,
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
    pub(super) config: MongoDbConfig,
    /// None once the store is closed.
    lane: ArcSwapOption<Lane>,
    /// The calls under way, which closing waits for.
    calls: Gate,
    pub(super) plans: Plans,
}

impl Server {
    pub(super) async fn new(config: MongoDbConfig) -> Result<Self> {
        let lane = Arc::new(Lane::new(&config, config.pool_size).await?);
        Ok(Self { config, lane: ArcSwapOption::new(Some(lane)), calls: Gate::new(), plans: Plans::default() })
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
        let lane = Arc::new(Lane::new(&self.config, max).await?);
        // Unless it was closed, or resized, meanwhile.
        let found = self.lane.compare_and_swap(&old, Some(lane.clone()));
        match &*found {
            Some(found) if Arc::ptr_eq(found, &old) => old.retire(),
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
                match self.server.lane()?.lease().await {
                    Ok(lease) => return Ok(lease),
                    Err(NoLease::Retired) => {}
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
                NoLease::Retired => Error::closed(),
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
    ///
    /// The driver closes a connection on which a request was cut off instead of giving it to the next call.
    pub(super) async fn ask<T>(&self, request: impl IntoFuture<Output = DriverResult<T>>) -> Result<T> {
        if Instant::now() >= self.deadline {
            return Err(over());
        }
        match timeout_at(self.deadline, request.into_future()).await {
            Ok(result) => result.map_err(|error| failure::of_request(&error, Effect::Read)),
            Err(_) => Err(no_reply(Effect::Read)),
        }
    }

    /// The answer to a write, in time.
    ///
    /// It goes on in a task of its own when nobody waits for it any more: the driver would give its session to the next write,
    /// and the server makes that one wait for this one.
    pub(super) async fn write<T, F>(&self, lease: Lease, request: impl FnOnce(Lease) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = DriverResult<T>> + Send + 'static,
    {
        let result = self.detached(Effect::Write, request(lease)).await?;
        result.map_err(|error| failure::of_request(&error, Effect::Write))
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
            Err(error) if failure::lost_upsert(&error) && attempt < UPSERT_ATTEMPTS => attempt += 1,
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
