//! `Transactional` for `MongoDb`.

use std::{sync::Arc, time::Duration};

use mongodb::{
    bson::doc,
    error::{Result as DriverResult, TRANSIENT_TRANSACTION_ERROR},
};
use tokio::time::{timeout, timeout_at};

use super::{
    MongoDb,
    commit::commit,
    document, error,
    pool::{Permit, Pool},
    session::{IdleSession, Session, lock},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result, Transaction, Transactional,
    backend::remote::Effect, error::Kind,
};

/// How long a new transaction waits for rollbacks under way. If they take longer, it may conflict with them.
const ROLLBACK_WAIT: Duration = Duration::from_millis(100);

/// A transaction of [`MongoDb`]: snapshot isolation, committed to the majority.
///
/// It holds no connection between its calls. An error of the server or a dropped call ends it: every later
/// call and [`commit`](Transaction::commit) fail, and nothing was changed. The server ends a transaction that
/// takes longer than a minute (`transactionLifetimeLimitSeconds`).
pub struct MongoDbTransaction {
    mongodb: MongoDb,
    /// The pool that began it: a session belongs to one client.
    pool: Arc<Pool>,
    /// None during a call, after a dropped or failed one, and once the store is closed.
    session: Arc<IdleSession>,
    failed: Option<Error>,
}

impl std::fmt::Debug for MongoDbTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MongoDbTransaction")
    }
}

impl Transactional for MongoDb {
    type Transaction = MongoDbTransaction;

    /// The first call takes the snapshot. A standalone server has no transactions:
    /// [`Unsupported`](ErrorKind::Unsupported).
    async fn begin(&self) -> Result<MongoDbTransaction> {
        let call = self.call()?;
        // A dropped transaction keeps its documents locked until it is rolled back.
        drop(timeout(ROLLBACK_WAIT, self.server.pool()?.transactions.rollbacks_done()).await);
        let permit = call.permit().await?;
        if !permit.writable.has_transactions() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a standalone MongoDB server has no transactions: convert it to a replica set, which may have one member",
            ));
        }
        let session = call.ask(permit.begin_session()).await?;
        let session = permit.transactions.keep(session);
        Ok(MongoDbTransaction { mongodb: self.clone(), pool: permit.pool.clone(), session, failed: None })
    }
}

impl MongoDbTransaction {
    fn take_session(&mut self) -> Result<Session> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        lock(&self.session).take().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "a call of this transaction was dropped, so it is rolled back")
        })
    }

    /// Runs a request in its own task. If the call is dropped, the task drops the session at its end.
    async fn run<T, F>(&mut self, request: impl FnOnce(Permit, Session) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = (Session, DriverResult<T>)> + Send + 'static,
    {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let session = self.take_session()?;
        let result = match call.permit_of(Some(&self.pool)).await {
            // A request without a reply is never committed.
            Ok(permit) => call.detached(Effect::Read, request(permit, session)).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok((session, Ok(value))) => {
                *lock(&self.session) = Some(session);
                Ok(value)
            }
            Ok((session, Err(error))) => {
                if error.contains_label(TRANSIENT_TRANSACTION_ERROR) {
                    session.end();
                }
                Err(error::of_statement(&error))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }
}

/// Runs one request in the transaction.
macro_rules! statement {
    ($transaction:ident, |$permit:ident| $request:expr) => {
        $transaction
            .run(|$permit, mut session| async move {
                let result = $request.session(session.driver()).await;
                (session, result)
            })
            .await
    };
}

impl Transaction for MongoDbTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        let query = doc! { "_id": id.as_str() };
        let found = statement!(self, |permit| permit.credentials.find_one(query))?;
        document::credential(id, &found.ok_or_else(|| Error::not_found(Kind::Credential, id))?)
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        let (query, body) = (doc! { "_id": id.as_str() }, document::from_credential(credential));
        statement!(self, |permit| permit.credentials.replace_one(query, body).upsert(true)).map(drop)
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        let query = doc! { "_id": id.as_str() };
        let deleted = statement!(self, |permit| permit.credentials.delete_one(query))?;
        Error::unless_found(deleted.deleted_count > 0, Kind::Credential, id)
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        let query = doc! { "_id": key.as_str() };
        let found = statement!(self, |permit| permit.configs.find_one(query))?;
        document::config(key, &found.ok_or_else(|| Error::not_found(Kind::Config, key))?)
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        let (query, body) = (doc! { "_id": key.as_str() }, document::from_config(value));
        statement!(self, |permit| permit.configs.replace_one(query, body).upsert(true)).map(drop)
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        let query = doc! { "_id": key.as_str() };
        let deleted = statement!(self, |permit| permit.configs.delete_one(query))?;
        Error::unless_found(deleted.deleted_count > 0, Kind::Config, key)
    }

    /// Until the deadline the commit is sent again until it is answered, so that a lost reply leaves no
    /// doubt. The server applies it once.
    async fn commit(mut self) -> Result<()> {
        let mongodb = self.mongodb.clone();
        let call = mongodb.call()?;
        let session = self.take_session()?;
        let (permit, deadline) = (call.permit_of(Some(&self.pool)).await?, call.deadline);
        let committing = async move {
            let _permit = permit;
            commit(session, deadline).await
        };
        call.detached(Effect::Write, committing).await?
    }

    async fn rollback(self) -> Result<()> {
        let call = self.mongodb.call()?;
        // Dropping the session rolls it back in the background.
        drop(lock(&self.session).take());
        drop(timeout_at(call.deadline, self.pool.transactions.rollbacks_done()).await);
        Ok(())
    }
}
