//! [`Transactional`] and [`Transaction`]: many changes, or none.

use crate::{Backend, ConfigValue, Credential, Key, Result, capability, layer::LayeredTransaction};

/// Starts transactions.
#[capability(wrapper = TransactionalWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no transactions",
    note = "backends with transactions: `Memory`, `MongoDb`, `Postgres`"
)]
pub trait Transactional: Backend {
    /// A transaction of this backend. It borrows nothing, so it can be moved to another task.
    #[layered(LayeredTransaction)]
    type Transaction: Transaction;

    /// Begins a transaction.
    ///
    /// - At least snapshot isolation: it reads a snapshot of the store, and its own writes.
    /// - No lost update: when a transaction and another transaction or write change the same record
    ///   concurrently, one of them succeeds and the other fails with
    ///   [`Conflict`](crate::ErrorKind::Conflict), at the write or at commit. The transaction can be retried
    ///   from the start, as [`transact!`](crate::transact) does. `Memory` and `Postgres` are stricter: they
    ///   are serializable, so a concurrent change of a record that was only read is a conflict, too.
    #[operation(control, harmless)]
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send;
}

/// Changes that become visible together at [`commit`](Transaction::commit), or never.
///
/// Dropping a transaction rolls it back.
#[capability(on = LayeredTransaction, wrapper = TransactionWrapper)]
pub trait Transaction: Sized + Send + 'static {
    /// Reads one credential, as [`CredentialStore::get_credential`](crate::CredentialStore::get_credential).
    #[operation(read)]
    fn get_credential(&mut self, id: &Key) -> impl Future<Output = Result<Credential>> + Send;

    /// Stores one credential, as [`CredentialStore::set_credential`](crate::CredentialStore::set_credential).
    #[operation(write)]
    fn set_credential(
        &mut self,
        id: &Key,
        credential: &Credential,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Deletes one credential, as
    /// [`CredentialStore::delete_credential`](crate::CredentialStore::delete_credential).
    #[operation(write)]
    fn delete_credential(&mut self, id: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Reads one config value, as [`ConfigStore::get_config`](crate::ConfigStore::get_config).
    #[operation(read)]
    fn get_config(&mut self, key: &Key) -> impl Future<Output = Result<ConfigValue>> + Send;

    /// Stores one config value, as [`ConfigStore::set_config`](crate::ConfigStore::set_config).
    #[operation(write)]
    fn set_config(&mut self, key: &Key, value: &ConfigValue) -> impl Future<Output = Result<()>> + Send;

    /// Deletes one config value, as [`ConfigStore::delete_config`](crate::ConfigStore::delete_config).
    #[operation(write)]
    fn delete_config(&mut self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Makes all changes visible and durable in one step.
    ///
    /// - [`Conflict`](crate::ErrorKind::Conflict), and nothing is changed, if a record that this transaction
    ///   changes was changed by another transaction or write since this one began.
    /// - [`Outcome::Unknown`](crate::Outcome::Unknown) if the backend can't find out whether the commit was
    ///   applied, for example because the reply was lost. It never guesses.
    #[operation(control)]
    fn commit(self) -> impl Future<Output = Result<()>> + Send;

    /// Discards all changes. The default body drops the transaction.
    #[operation(control, harmless)]
    fn rollback(self) -> impl Future<Output = Result<()>> + Send {
        async move {
            drop(self);
            Ok(())
        }
    }
}
