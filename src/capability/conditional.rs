//! [`Conditional`]: writes that are made only if the record has not changed.

use std::pin::Pin;

use crate::{
    ConfigStore, CredentialStore, Error, ErrorKind, Key, Record, Result, capability,
    history::DocumentKind,
    model::{Condition, Revision},
};

/// Changes a credential or a config value only if nothing else has changed it meanwhile.
///
/// Read a record with its [revision](Revision), decide, and write with
/// [`Condition::Unchanged`]: of several concurrent writers one succeeds, and the others get a
/// [`Conflict`](ErrorKind::Conflict) and read again. The comparison and the write are one step at the server
/// and one round trip. Writers that use no revision are noticed, too, also other programs; on `MongoDb`, see
/// its page.
#[capability(wrapper = ConditionalWrapper)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot write conditionally",
    note = "backends that write conditionally: `File`, `Git`, `Memory`, `MongoDb`, `Postgres`, `Redis`"
)]
pub trait Conditional: CredentialStore + ConfigStore {
    /// Reads one record and its revision.
    ///
    /// - [`NotFound`](ErrorKind::NotFound) if there is none.
    #[operation(read)]
    fn get_with_revision(
        &self,
        kind: DocumentKind,
        key: &Key,
    ) -> impl Future<Output = Result<(Record, Revision)>> + Send;

    /// Stores one record if the condition holds, and returns its new revision.
    ///
    /// - [`Conflict`](ErrorKind::Conflict) if the condition does not hold, and nothing is changed. The error
    ///   has the record's key and is not [retryable](Error::is_retryable).
    /// - This also holds if the stored record already equals this one: of two writers that both count from 5
    ///   to 6, one must count again. So after an [`Unknown`](crate::Outcome::Unknown) outcome, a second call
    ///   is never applied twice, but its `Conflict` does not tell whether the first one was applied: read the
    ///   record.
    /// - [`InvalidValue`](ErrorKind::InvalidValue) for a counter, which has no revision.
    #[operation(write)]
    fn set_if(&self, record: &Record, condition: Condition) -> impl Future<Output = Result<Revision>> + Send;

    /// Deletes one record if it has this revision.
    ///
    /// - [`NotFound`](ErrorKind::NotFound) if there is none.
    /// - [`Conflict`](ErrorKind::Conflict) if it has another revision, and nothing is changed.
    #[operation(write)]
    fn delete_if(
        &self,
        kind: DocumentKind,
        key: &Key,
        revision: Revision,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Ends at the next change of this record, for a caller that would otherwise look again and again.
    ///
    /// - It begins with the call, not with its first poll. It may also end without a change, or be late.
    /// - The default is `None`: the caller has to look by itself. Our backends return `Some` while something
    ///   in this process [watches](crate::watch::Watch) the store, and begin no watch for it.
    #[forward]
    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        let _ = (kind, key);
        None
    }
}

/// Ends when a record may have changed.
pub type Wake = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The kind, the key and the compact JSON of a record that has revisions.
pub(crate) fn document_of(record: &Record) -> Result<(DocumentKind, &Key, Vec<u8>)> {
    match record {
        Record::Credential { id, credential } => {
            Ok((DocumentKind::Credential, id, credential.to_json().into_bytes()))
        }
        Record::Config { key, value } => Ok((DocumentKind::Config, key, value.to_json().into_bytes())),
        Record::Usage { key, .. } => {
            Err(Error::new(ErrorKind::InvalidValue, "a counter has no revision: increment it").with_key(key))
        }
    }
}
