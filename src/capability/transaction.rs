//! [`Transactional`] and [`Transaction`]: many changes, or none.

use crate::{Backend, ConfigValue, Credential, Key, LayeredTransaction, Result, capability};

/// Starts transactions.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no transactions",
    note = "backends with transactions: `Memory`, `MongoDb`, `Postgres`"
)]
pub trait Transactional: Backend {
    /// A transaction of this backend. It owns what it needs and can be moved to another task.
    #[layered(LayeredTransaction)]
    type Transaction: Transaction;

    /// Begins a transaction.
    ///
    /// - At least snapshot isolation: it sees the store as it was at one moment, and its own writes.
    /// - No lost update: of two transactions that change the same record, or a transaction and a write outside it,
    ///   one commits and the other one gets [`Conflict`](crate::ErrorKind::Conflict), at the write or at commit. It
    ///   may be tried again from the start ([`transact!`](crate::transact) does). A backend may be stricter:
    ///   `Memory` and `Postgres` are serializable, and give it for what was only read, too.
    #[operation(control, harmless)]
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send;
}

/// Changes that become visible together at [`commit`](Transaction::commit), or never.
///
/// Dropping it rolls back.
#[capability(on = LayeredTransaction)]
pub trait Transaction: Send + 'static {
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

    /// Deletes one credential, as [`CredentialStore::delete_credential`](crate::CredentialStore::delete_credential).
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

    /// Makes all changes visible and durable, at once.
    ///
    /// - [`Conflict`](crate::ErrorKind::Conflict) if another one changed a record that this one changes, since it
    ///   began: nothing is changed.
    /// - [`Outcome::Unknown`](crate::Outcome::Unknown) if nobody can say whether it happened: never `Ok` or
    ///   "not applied" on a guess.
    #[operation(control)]
    fn commit(self) -> impl Future<Output = Result<()>> + Send;

    /// Forgets all changes.
    #[operation(control, harmless)]
    fn rollback(self) -> impl Future<Output = Result<()>> + Send;
}
