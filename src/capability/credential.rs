//! [`CredentialStore`]: JSON objects by id.

use crate::{Backend, BatchReport, Credential, Found, Key, Result, capability};

/// Stores credentials: JSON objects by id.
#[capability]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot store credentials",
    note = "backends that store credentials: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait CredentialStore: Backend {
    /// Reads one credential.
    ///
    /// - It is equal to what was stored: no field is added, dropped or changed.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(read)]
    fn get_credential(&self, id: &Key) -> impl Future<Output = Result<Credential>> + Send;

    /// Stores one credential, in place of any other under this id.
    ///
    /// - `Ok` means durable, as far as the backend promises.
    #[operation(write, overwrites)]
    fn set_credential(&self, id: &Key, credential: &Credential) -> impl Future<Output = Result<()>> + Send;

    /// Deletes one credential, for good: it is not back after a restart.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(write)]
    fn delete_credential(&self, id: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Lists all ids, sorted by their bytes.
    #[operation(read)]
    fn list_credentials(&self) -> impl Future<Output = Result<Vec<Key>>> + Send;

    /// Reads many credentials.
    ///
    /// - Those that are there come back, sorted by id; each of the others is a failure with its id.
    /// - An id that is named twice is found once; if it is missing, each mention is a failure.
    #[operation(read, batch = ids)]
    fn get_credentials(&self, ids: &[Key]) -> impl Future<Output = Result<Found>> + Send;

    /// Stores many credentials.
    ///
    /// - One bad item does not stop the others; the report names each failure.
    /// - Of several items under one id the last one stays, and all of them count as succeeded.
    /// - All-or-nothing only where the backend says so (`File`, `Git`, `Memory`): elsewhere use a transaction.
    #[operation(write, overwrites, batch = credentials)]
    fn set_credentials(
        &self,
        credentials: &[(Key, Credential)],
    ) -> impl Future<Output = Result<BatchReport>> + Send;

    /// Deletes many credentials.
    ///
    /// - An id that was not there is a [`NotFound`](crate::ErrorKind::NotFound) failure and stops nothing.
    /// - An id that is named twice is deleted once, and both mentions get the same result.
    #[operation(write, batch = ids)]
    fn delete_credentials(&self, ids: &[Key]) -> impl Future<Output = Result<BatchReport>> + Send;
}
