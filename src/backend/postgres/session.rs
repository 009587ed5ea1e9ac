//! A connection with an open transaction.

use super::{
    server::{Call, PooledConnection},
    statement::{Parameter, Reply, Sql},
};
use crate::{
    Result,
    backend::remote::{Effect, pool::Reuse},
};

/// An open transaction. A dropped one is rolled back before its connection is used again.
pub(super) struct Session {
    connection: PooledConnection,
}

impl Session {
    pub(super) async fn begin(call: &Call<'_>, begin: &str) -> Result<Self> {
        Self::begin_on(call, call.connection().await?, begin).await
    }

    /// Begins a transaction whose incarnation of the server is known.
    pub(super) async fn begin_with_incarnation(call: &Call<'_>, begin: &str) -> Result<Self> {
        let mut connection = call.connection().await?;
        call.learn_incarnation(&mut connection).await?;
        Self::begin_on(call, connection, begin).await
    }

    async fn begin_on(call: &Call<'_>, mut connection: PooledConnection, begin: &str) -> Result<Self> {
        // Before the request: if that fails, a transaction may be open.
        connection.in_transaction = true;
        let mut session = Self { connection };
        session.execute(call, Effect::Read, begin).await?;
        Ok(session)
    }

    pub(super) fn incarnation(&self) -> Option<String> {
        self.connection.incarnation.clone()
    }

    /// Whether the connection can't be used any more: a call was interrupted, or the connection failed.
    pub(super) fn is_broken(&self) -> bool {
        self.connection.is_dead()
    }

    /// Runs one statement. Its outcome is that of a read: nothing is applied before the commit.
    pub(super) async fn run(
        &mut self,
        call: &Call<'_>,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        call.run_on(&mut self.connection, Effect::Read, statement, parameters).await
    }

    pub(super) async fn execute(&mut self, call: &Call<'_>, effect: Effect, text: &str) -> Result<()> {
        call.execute_on(&mut self.connection, effect, text).await
    }

    /// Commits. If the reply is lost, the outcome of the error is Unknown.
    pub(super) async fn commit(mut self, call: &Call<'_>) -> Result<()> {
        // COMMIT of a failed transaction succeeds and rolls it back. The empty SELECT fails then.
        self.execute(call, Effect::Write, "SELECT; COMMIT").await?;
        self.connection.in_transaction = false;
        Ok(())
    }

    /// Rolls back. If that fails, the connection is closed, and the server rolls back.
    pub(super) async fn rollback(mut self, call: &Call<'_>) {
        if !self.is_broken() && self.execute(call, Effect::Read, "ROLLBACK").await.is_ok() {
            self.connection.in_transaction = false;
        }
    }
}
