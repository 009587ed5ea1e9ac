//! [`CredentialStore`]: JSON objects by id.

use std::collections::{BTreeMap, BTreeSet};

use futures_core::Stream;

use super::{
    batch::{Deadline, READ, WRITE, report},
    stream,
};
use crate::{Backend, BatchReport, Credential, Found, Key, Result, capability, model::ListOptions};

/// Stores credentials: JSON objects by id.
///
/// The default body of each batch calls the operation for one credential, once for each id and one after
/// another.
#[capability(wrapper = CredentialStoreWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot store credentials",
    note = "backends that store credentials: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait CredentialStore: Backend {
    /// Reads one credential.
    ///
    /// - It equals the credential that was stored: no field is added, dropped or changed.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(read)]
    fn get_credential(&self, id: &Key) -> impl Future<Output = Result<Credential>> + Send;

    /// Stores one credential, and replaces any credential under this id.
    ///
    /// - After `Ok` it is as durable as the backend's page promises.
    #[operation(write, overwrites)]
    fn set_credential(&self, id: &Key, credential: &Credential) -> impl Future<Output = Result<()>> + Send;

    /// Deletes one credential permanently: it does not return after a restart.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is none.
    #[operation(write)]
    fn delete_credential(&self, id: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Lists all ids, sorted by their bytes. [`stream_credentials`](CredentialStore::stream_credentials) has
    /// the values, too.
    #[operation(read)]
    fn list_credentials(&self) -> impl Future<Output = Result<Vec<Key>>> + Send;

    /// Reads many credentials.
    ///
    /// - Returns the credentials that exist, sorted by id, and a failure for each other id.
    /// - An id that is passed twice is returned once; if it is missing, each mention is a failure.
    #[operation(read, batch = ids)]
    fn get_credentials(&self, ids: &[Key]) -> impl Future<Output = Result<Found<Credential>>> + Send {
        async move {
            let deadline = Deadline::of(self);
            deadline.read_each(ids, |id| deadline.run(READ, self.get_credential(id))).await
        }
    }

    /// Stores many credentials.
    ///
    /// - A failed item does not stop the others; the report lists each failure.
    /// - Of several items with one id the last one is stored, and all of them count as succeeded.
    /// - All-or-nothing only where the backend says so (`File`, `Git`, `Memory`). Elsewhere use a
    ///   transaction, if there are any.
    #[operation(write, overwrites, batch = credentials)]
    fn set_credentials(
        &self,
        credentials: &[(Key, Credential)],
    ) -> impl Future<Output = Result<BatchReport>> + Send {
        async move {
            let deadline = Deadline::of(self);
            let set = |id, credential| deadline.run(WRITE, self.set_credential(id, credential));
            deadline.set_each(credentials, set).await
        }
    }

    /// Deletes many credentials.
    ///
    /// - A missing id is a [`NotFound`](crate::ErrorKind::NotFound) failure and does not stop the others.
    /// - An id that is passed twice is deleted once, and both mentions get the same result.
    #[operation(write, batch = ids)]
    fn delete_credentials(&self, ids: &[Key]) -> impl Future<Output = Result<BatchReport>> + Send {
        async move {
            let (deadline, mut results) = (Deadline::of(self), BTreeMap::new());
            for id in ids.iter().collect::<BTreeSet<_>>() {
                results.insert(id, deadline.run(WRITE, self.delete_credential(id)).await);
            }
            report(ids.iter(), &results)
        }
    }

    /// Streams credentials with their ids, sorted by id: those that the [options](ListOptions) name. The
    /// default body lists all ids, and reads the credentials in batches.
    ///
    /// - The stream ends after the first error.
    /// - It is read page by page, and is no snapshot: a credential that is there all the time is returned
    ///   once. One that is stored or deleted meanwhile may be returned or not.
    #[operation(read)]
    fn stream_credentials(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<(Key, Credential)>> + Send {
        let get = move |ids: Vec<Key>| async move { self.get_credentials(&ids).await };
        stream::of_keys(options, self.list_credentials(), get)
    }
}
