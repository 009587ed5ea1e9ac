//! Transactions, and what became of a commit whose reply was lost.

use std::time::Duration;

use mongodb::{
    bson::doc,
    error::{Result as DriverResult, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT},
};
use tokio::time::{Instant, timeout_at};

use super::{
    MongoDb, config, credential, document, failure, pool::Lease, server::no_reply, session::Session,
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Outcome, Result, Transaction, Transactional,
    backend::remote::Effect,
};

/// A transaction of [`MongoDb`]: snapshot isolation, committed to the majority.
///
/// It holds no connection between its calls. After an error of the server, or a call that was cut off, it is over: every later
/// call and [`commit`](Transaction::commit) fail, and nothing was changed. The server ends one that takes longer than a minute
/// (`transactionLifetimeLimitSeconds`).
pub struct MongoDbTransaction {
    mongodb: MongoDb,
    /// None while a call is under way, and after one was cut off.
    session: Option<Session>,
    failed: Option<Error>,
}

impl std::fmt::Debug for MongoDbTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MongoDbTransaction")
    }
}

impl Transactional for MongoDb {
    type Transaction = MongoDbTransaction;

    /// A standalone server has no transactions: [`Unsupported`](ErrorKind::Unsupported). The snapshot is taken by the first call.
    async fn begin(&self) -> Result<MongoDbTransaction> {
        let call = self.call()?;
        let lane = call.lease().await?;
        if !lane.topology.writable().has_transactions() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a standalone MongoDB server has no transactions: make it a replica set, of one member if need be",
            ));
        }
        // One that was dropped holds its documents until the server has heard of it.
        drop(timeout_at(call.deadline(), lane.rollbacks.all()).await);
        let session = Session::begin(&call, &lane).await?;
        Ok(MongoDbTransaction { mongodb: self.clone(), session: Some(session), failed: None })
    }
}

impl MongoDbTransaction {
    fn take_session(&mut self) -> Result<Session> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.session.take().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "a call of this transaction was cut off: it is rolled back")
        })
    }

    /// Runs a request in a task of its own. If nobody waits for it any more, the session is dropped when it ends.
    async fn run<T, F>(&mut self, request: impl FnOnce(Lease, Session) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = (Session, DriverResult<T>)> + Send + 'static,
    {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let session = self.take_session()?;
        let lease = match call.lease().await {
            Ok(lease) => lease,
            Err(error) => {
                self.failed = Some(error.clone());
                return Err(error);
            }
        };
        let result = match timeout_at(call.deadline(), tokio::spawn(request(lease, session))).await {
            Ok(Ok((session, result))) => {
                self.session = Some(session);
                result.map_err(|error| of_statement(&error))
            }
            Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "a request of a transaction panicked")),
            // It is never committed.
            Err(_) => Err(no_reply(Effect::Read)),
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }
}

/// A statement of a transaction that failed: the transaction did not happen, and may be tried again if the server says so.
#[cold]
pub(super) fn of_statement(error: &mongodb::error::Error) -> Error {
    let failure = failure::of_request(error, Effect::Read);
    if error.contains_label(TRANSIENT_TRANSACTION_ERROR) { failure.with_retryable(true) } else { failure }
}

/// One statement on a collection of the transaction.
macro_rules! statement {
    ($transaction:ident, |$lane:ident| $request:expr) => {
        $transaction
            .run(|$lane, mut session| async move {
                let result = $request.session(session.driver()).await;
                (session, result)
            })
            .await
    };
}

impl Transaction for MongoDbTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        let query = doc! { "_id": id.as_str() };
        let found = statement!(self, |lane| lane.credentials.find_one(query))?;
        document::credential(id, &found.ok_or_else(credential::missing)?)
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        let (query, body) = (doc! { "_id": id.as_str() }, document::of_credential(credential));
        statement!(self, |lane| lane.credentials.replace_one(query, body).upsert(true)).map(drop)
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        let query = doc! { "_id": id.as_str() };
        match statement!(self, |lane| lane.credentials.delete_one(query))?.deleted_count {
            0 => Err(credential::missing()),
            _ => Ok(()),
        }
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        let query = doc! { "_id": key.as_str() };
        let found = statement!(self, |lane| lane.configs.find_one(query))?;
        document::config(key, &found.ok_or_else(config::missing)?)
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        let (query, body) = (doc! { "_id": key.as_str() }, document::of_config(value));
        statement!(self, |lane| lane.configs.replace_one(query, body).upsert(true)).map(drop)
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        let query = doc! { "_id": key.as_str() };
        match statement!(self, |lane| lane.configs.delete_one(query))?.deleted_count {
            0 => Err(config::missing()),
            _ => Ok(()),
        }
    }

    /// A lost reply is resolved: within the deadline the commit, and nothing but the commit, is sent until it is answered. The
    /// server carries it out once.
    async fn commit(mut self) -> Result<()> {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let session = self.take_session()?;
        let (lease, deadline) = (call.lease().await?, call.deadline());
        let committing = tokio::spawn(async move {
            let _lease = lease;
            commit(session, deadline).await
        });
        match timeout_at(deadline, committing).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(Error::new(ErrorKind::Internal, "a commit panicked").with_outcome(Outcome::Unknown))
            }
            Err(_) => Err(no_reply(Effect::Write)),
        }
    }

    async fn rollback(mut self) -> Result<()> {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let lane = call.lease().await?;
        // Dropped, it rolls back in the background, like one whose call was cut off.
        drop(self.session.take());
        drop(timeout_at(call.deadline(), lane.rollbacks.all()).await);
        Ok(())
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Pauses between tries, until a deadline.
pub(super) struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    pub(super) fn until(deadline: Instant) -> Self {
        Self { next: FIRST_PAUSE, deadline }
    }

    /// False: there is no time for another try.
    pub(super) async fn pause(&mut self) -> bool {
        let end = Instant::now() + self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        if end >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(end).await;
        self.next = LONGEST_PAUSE.min(self.next * 2);
        true
    }
}

/// Commits, and asks again while nobody can tell what became of it.
pub(super) async fn commit(mut session: Session, deadline: Instant) -> Result<()> {
    let mut pauses = Pauses::until(deadline);
    let result = loop {
        let Err(error) = session.driver().commit_transaction().await else { break Ok(()) };
        if !error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) {
            break Err(match failure::code_of(&error) {
                // The server answered, and it is none of the answers after which nobody can tell.
                Some(_) => of_statement(&error),
                None => failure::of_request(&error, Effect::Write),
            });
        }
        if !pauses.pause().await {
            break Err(failure::of_request(&error, Effect::Write).with_outcome(Outcome::Unknown));
        }
    };
    session.end();
    result
}
