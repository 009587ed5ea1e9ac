//! The servers as one store sees them: calls with deadlines, on leased turns.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use mongodb::error::Result as DriverResult;
use tokio::time::{Instant, timeout_at};

use super::{
    MongoDb, MongoDbConfig, failure,
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
};

/// How often an upsert is tried that another one of the same new document came before.
const UPSERT_ATTEMPTS: u32 = 10;

pub(super) struct Server {
    pub(super) config: MongoDbConfig,
    /// None once the store is closed.
    lane: ArcSwapOption<Lane>,
    /// The calls under way, which closing waits for.
    calls: Gate,
}

impl Server {
    pub(super) async fn new(config: MongoDbConfig) -> Result<Self> {
        let lane = Arc::new(Lane::new(&config, config.pool_size).await?);
        Ok(Self { config, lane: ArcSwapOption::new(Some(lane)), calls: Gate::new() })
    }

    pub(super) fn lane(&self) -> Result<Arc<Lane>> {
        self.lane.load_full().ok_or_else(Error::closed)
    }

    pub(super) async fn resize(&self, max: u32) -> Result<()> {
        let lane = Arc::new(Lane::new(&self.config, max).await?);
        if let Some(old) = self.lane.swap(Some(lane)) {
            old.retire();
        }
        Ok(())
    }

    /// Waits until the calls under way are done, then disconnects. After the deadline it does not wait for them.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let all = tokio::time::timeout(deadline, self.calls.close()).await;
        if let Some(lane) = self.lane.swap(None) {
            lane.retire();
            // A transaction that is still held would keep it waiting.
            lane.client.clone().shutdown().immediate(true).await;
        }
        match all {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "closed, while calls were still under way")),
        }
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
            deadline: later(Instant::now(), self.deadline),
            _under_way: under_way,
        })
    }
}

impl Call<'_> {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A turn, in time. Until here nothing was sent.
    pub(super) async fn lease(&self) -> Result<Lease> {
        if Instant::now() >= self.deadline {
            return Err(over());
        }
        let wait = async {
            loop {
                match self.server.lane()?.lease().await {
                    Ok(lease) => return Ok(lease),
                    Err(NoLease::Retired) => {}
                    Err(NoLease::Failed(error)) => return Err(error),
                }
            }
        };
        timeout_at(self.deadline, wait).await.unwrap_or_else(|_| match self.server.lane() {
            Ok(lane) if lane.topology.writable() == Writable::None => Err(lane.topology.why_none()),
            _ => Err(Error::new(ErrorKind::Timeout, "no turn to speak to the MongoDB server in time")),
        })
    }

    /// The answer to a request, in time.
    ///
    /// The driver closes a connection on which a request was cut off instead of giving it to the next call.
    pub(super) async fn ask<T>(
        &self,
        effect: Effect,
        request: impl IntoFuture<Output = DriverResult<T>>,
    ) -> Result<T> {
        self.answer(effect, request).await.map_err(|failure| failure.into_error(effect))
    }

    /// An upsert, and again while another one of the same new document came before it.
    pub(super) async fn upsert<T, R: IntoFuture<Output = DriverResult<T>>>(
        &self,
        request: impl Fn() -> R,
    ) -> Result<T> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.answer(Effect::Write, request()).await {
                Err(Failure::Answered(error))
                    if failure::lost_upsert(&error) && attempts < UPSERT_ATTEMPTS => {}
                result => return result.map_err(|failure| failure.into_error(Effect::Write)),
            }
        }
    }

    async fn answer<T>(
        &self,
        effect: Effect,
        request: impl IntoFuture<Output = DriverResult<T>>,
    ) -> Result<T, Failure> {
        if Instant::now() >= self.deadline {
            return Err(Failure::Late(over()));
        }
        match timeout_at(self.deadline, request.into_future()).await {
            Ok(result) => result.map_err(Failure::Answered),
            Err(_) => Err(Failure::Late(no_reply(effect))),
        }
    }
}

/// Why there is no answer.
enum Failure {
    Answered(mongodb::error::Error),
    Late(Error),
}

impl Failure {
    #[cold]
    fn into_error(self, effect: Effect) -> Error {
        match self {
            Self::Answered(error) => failure::of_request(&error, effect),
            Self::Late(error) => error,
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
