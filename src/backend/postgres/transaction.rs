//! Transactions, and the outcome of a commit whose reply was lost.

use super::{
    Postgres, config, credential,
    server::Call,
    session::Session,
    statement::{Parameter, Reply, Sql, column},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Outcome, Result, Transaction, Transactional,
    backend::remote::{Backoff, Effect},
    codec::{encode_config, encode_credential},
    error::Kind,
};

/// A transaction of [`Postgres`]: serializable, unless the options select
/// [`RepeatableRead`](crate::backend::postgres::Isolation::RepeatableRead).
///
/// It holds a connection until it ends. After a failed or interrupted call it is over: every later call and
/// [`commit`](Transaction::commit) fail, after an error with the same error, and nothing is changed.
pub struct PostgresTransaction {
    postgres: Postgres,
    session: Session,
    /// The server's transaction number, known after the first write.
    number: Option<String>,
    failed: Option<Error>,
}

impl std::fmt::Debug for PostgresTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresTransaction")
    }
}

impl Transactional for Postgres {
    type Transaction = PostgresTransaction;

    async fn begin(&self) -> Result<PostgresTransaction> {
        let session = Session::begin_with_incarnation(&self.call()?, &self.server.begin).await?;
        Ok(PostgresTransaction { postgres: self.clone(), session, number: None, failed: None })
    }
}

impl PostgresTransaction {
    /// Fails if the transaction has failed.
    fn check(&self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.session.is_broken() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "a call of this transaction was interrupted, or its connection was lost; it is rolled back",
            ));
        }
        Ok(())
    }

    async fn run(&mut self, statement: Sql, parameters: &[Parameter<'_>]) -> Result<Reply> {
        let postgres = self.postgres.clone();
        let call = postgres.call()?;
        self.check()?;
        let result = self.session.run(&call, statement, parameters).await;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Runs a statement that returns the transaction's number if it wrote something. Returns whether it did.
    async fn write(&mut self, statement: Sql, parameters: &[Parameter<'_>]) -> Result<bool> {
        let reply = self.run(statement, parameters).await?;
        let Some(row) = reply.rows.first() else { return Ok(false) };
        if self.number.is_none() {
            self.number = Some(column(row, 0)?);
        }
        Ok(true)
    }
}

impl Transaction for PostgresTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        let reply = self.run(Sql::GetCredential, &[Parameter::Text(id.as_str())]).await?;
        credential::read(id, reply.rows.first().ok_or_else(|| Error::not_found(Kind::Credential, id))?, 0)
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        let text = encode_credential(credential);
        let record = [Parameter::Text(id.as_str()), Parameter::Json(&text)];
        self.write(Sql::ReplaceCredential, &record).await.map(drop)
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        let deleted = self.write(Sql::RemoveCredential, &[Parameter::Text(id.as_str())]).await?;
        Error::unless_found(deleted, Kind::Credential, id)
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        let reply = self.run(Sql::GetConfig, &[Parameter::Text(key.as_str())]).await?;
        config::read(key, reply.rows.first().ok_or_else(|| Error::not_found(Kind::Config, key))?, 0)
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        let text = encode_config(value);
        let record = [Parameter::Text(key.as_str()), Parameter::Json(&text)];
        self.write(Sql::ReplaceConfig, &record).await.map(drop)
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        let deleted = self.write(Sql::RemoveConfig, &[Parameter::Text(key.as_str())]).await?;
        Error::unless_found(deleted, Kind::Config, key)
    }

    /// If the reply is lost, asks the server for the outcome of the transaction, within the deadline.
    async fn commit(self) -> Result<()> {
        let postgres = self.postgres.clone();
        let call = postgres.call()?;
        self.check()?;
        let (incarnation, has_written) = (self.session.incarnation(), self.number.is_some());
        let result = match (self.session.commit(&call).await, self.number) {
            (Err(error), Some(number)) if error.outcome() == Outcome::Unknown => {
                resolve(&call, &number, incarnation.as_deref(), error).await
            }
            // The transaction wrote nothing.
            (Err(error), None) => Err(error.with_outcome(Outcome::NotApplied)),
            (result, _) => result,
        };
        if has_written {
            call.server.ring();
        }
        result
    }

    async fn rollback(self) -> Result<()> {
        let call = self.postgres.call()?;
        self.session.rollback(&call).await;
        Ok(())
    }
}

/// The outcome of the transaction according to the server, or `lost` if it is not known by the deadline.
///
/// After a crash the server reuses the numbers of transactions that it lost, so "committed" counts only in
/// the same incarnation of the server. "aborted" is reliable in any: the transaction is not in the store.
async fn resolve(call: &Call<'_>, number: &str, incarnation: Option<&str>, lost: Error) -> Result<()> {
    let mut backoff = Backoff::until(call.deadline);
    loop {
        let reply = call.run(Effect::Read, Sql::TransactionStatus, &[Parameter::Text(number)]).await;
        let status = reply.as_ref().map(|reply| {
            let row = reply.row()?;
            Ok::<_, Error>((column::<Option<&str>>(row, 0)?, column::<Option<&str>>(row, 1)?))
        });
        match status {
            Ok(Ok((Some("committed"), now))) if now.is_some() && now == incarnation => return Ok(()),
            Ok(Ok((Some("aborted"), _))) => return Err(lost.with_outcome(Outcome::NotApplied)),
            // The server has not noticed the end of the old connection yet.
            Ok(Ok((Some("in progress"), _))) => {}
            Err(error) if error.is_retryable() => {}
            _ => return Err(lost),
        }
        if !backoff.pause().await {
            return Err(lost);
        }
    }
}
