//! A connection inside of a transaction.

use super::{
    pool::Lease,
    server::Call,
    statement::{Parameter, Reply, Sql},
};
use crate::{Result, backend::remote::Effect};

/// An open transaction of the server. Dropped, it is rolled back before its connection is used again.
pub(super) struct Session {
    lease: Lease,
}

impl Session {
    pub(super) async fn begin(call: &Call<'_>, begin: &str) -> Result<Self> {
        Self::begin_on(call, call.lease().await?, begin).await
    }

    /// Begins, and knows afterwards which life of the server it is in.
    pub(super) async fn begin_in_life(call: &Call<'_>, begin: &str) -> Result<Self> {
        let mut lease = call.lease().await?;
        call.life(&mut lease).await?;
        Self::begin_on(call, lease, begin).await
    }

    async fn begin_on(call: &Call<'_>, mut lease: Lease, begin: &str) -> Result<Self> {
        // If this fails half way, a transaction may be open.
        lease.in_transaction = true;
        let mut session = Self { lease };
        session.execute(call, Effect::Read, begin).await?;
        Ok(session)
    }

    /// Which life of the server it is in.
    pub(super) fn life(&mut self) -> Option<String> {
        self.lease.life.clone()
    }

    /// Whether a call was cut off, so that nothing more can be said in this transaction.
    pub(super) fn is_cut(&mut self) -> bool {
        self.lease.is_dead()
    }

    /// One statement. Nothing is applied before the commit.
    pub(super) async fn run(
        &mut self,
        call: &Call<'_>,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        call.run_on(&mut self.lease, Effect::Read, statement, parameters).await
    }

    pub(super) async fn execute(&mut self, call: &Call<'_>, effect: Effect, text: &str) -> Result<()> {
        call.execute_on(&mut self.lease, effect, text).await
    }

    /// Commits. The outcome of an error is Unknown if the reply was lost.
    pub(super) async fn commit(mut self, call: &Call<'_>) -> Result<()> {
        // COMMIT succeeds where the server has rolled the transaction back. The empty SELECT does not.
        self.execute(call, Effect::Write, "SELECT; COMMIT").await?;
        self.lease.in_transaction = false;
        Ok(())
    }

    /// Rolls back. If that fails the server does it, since the connection is closed.
    pub(super) async fn rollback(mut self, call: &Call<'_>) {
        if !self.is_cut() && self.execute(call, Effect::Read, "ROLLBACK").await.is_ok() {
            self.lease.in_transaction = false;
        }
    }
}
