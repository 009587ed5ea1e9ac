//! [`History`]: the history of records.

use crate::{
    Backend, Key, Record, Result, capability,
    history::{Commit, CommitId, DocumentKind},
};

/// Keeps every earlier value of a record, with the author and the time of each change.
///
/// A deleted credential therefore stays in the history. If it must become useless, revoke it where it was
/// issued.
#[capability(wrapper = HistoryWrapper)]
#[diagnostic::on_unimplemented(message = "`{Self}` keeps no history", note = "backends that keep one: `Git`")]
pub trait History: Backend {
    /// Lists the changes of one record, newest first, at most `limit`.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if the record never existed. A deleted record has a
    ///   history.
    #[operation(read)]
    fn history(
        &self,
        kind: DocumentKind,
        key: &Key,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Commit>>> + Send;

    /// Reads one record as it was right after a commit.
    ///
    /// - [`NotFound`](crate::ErrorKind::NotFound) if it did not exist then, or the commit is not in the
    ///   history.
    #[operation(read)]
    fn value_at(
        &self,
        commit: CommitId,
        kind: DocumentKind,
        key: &Key,
    ) -> impl Future<Output = Result<Record>> + Send;

    /// Undoes the changes of a commit in a new commit, and returns the newest commit.
    ///
    /// - All its records are reverted or none. If one of them has since been changed to another value, the
    ///   error is [`Conflict`](crate::ErrorKind::Conflict), and its [key](crate::Error::key) is that of the
    ///   first such record.
    /// - Reverting a second time changes nothing.
    /// - [`NotFound`](crate::ErrorKind::NotFound) if the commit is not in the history.
    #[operation(write, overwrites)]
    fn revert(&self, commit: CommitId) -> impl Future<Output = Result<CommitId>> + Send;
}
