//! [`Versioned`]: what was stored earlier.

use crate::{Backend, Key, Record, Result, Revision, RevisionId, VersionedKind, capability};

/// Keeps every earlier value, with who changed it and when.
///
/// So what was deleted is not gone: a credential that must not be found any more has to be revoked where it was issued.
#[capability]
#[diagnostic::on_unimplemented(message = "`{Self}` keeps no history", note = "backends that keep one: `Git`")]
pub trait Versioned: Backend {
    /// Lists the changes of one record, newest first, at most `limit`.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there never was one. A deleted one has a history.
    #[operation(read)]
    fn history(
        &self,
        kind: VersionedKind,
        key: &Key,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Revision>>> + Send;

    /// Reads one record as it was right after a revision.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if it was not there then, or there is no such revision in the history.
    #[operation(read)]
    fn value_at(
        &self,
        revision: RevisionId,
        kind: VersionedKind,
        key: &Key,
    ) -> impl Future<Output = Result<Record>> + Send;

    /// Undoes what a revision did, as a new one, and gives the newest revision.
    ///
    /// - All its records or none. If one of them was changed since to something else, it is
    ///   [`Conflict`](crate::ErrorKind::Conflict), and the error's [key](crate::Error::key) is the first.
    /// - Reverting twice changes nothing the second time.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if there is no such revision in the history.
    #[operation(write, overwrites)]
    fn revert(&self, revision: RevisionId) -> impl Future<Output = Result<RevisionId>> + Send;
}
