//! Conditional writes: the revision is the id of the blob in the branch's commit.

use super::{
    Git,
    state::{Files, blob_of, missing, revision_of, text_of},
};
use crate::{
    Error, ErrorKind, Key, Record, Result,
    capability::{Conditional, Wake, document_of},
    history::DocumentKind,
    model::{Condition, Revision},
};

/// A conflict with a commit that could not be fetched: the same call would fail again.
fn is_final(error: Error) -> Error {
    if error.kind() == ErrorKind::Conflict { error.with_retryable(false) } else { error }
}

impl Conditional for Git {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let key = key.clone();
        self.read(move |repository, head| {
            let (record, blob) = Files::of(repository, head)?.get(kind, &key)?;
            Ok((record, revision_of(blob)))
        })
        .await
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, _) = document_of(record)?;
        let new = revision_of(blob_of(&text_of(record)?.1)?);
        let (key, record) = (key.clone(), record.clone());
        self.commit("", move |draft| {
            condition.check(&key, draft.revision(kind, &key))?;
            draft.put(record.clone()).map(|()| new)
        })
        .await
        .map_err(is_final)
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let key = key.clone();
        self.commit("", move |draft| match draft.revision(kind, &key) {
            Some(stored) if stored == revision => draft.delete(kind, &key),
            Some(_) => Err(Condition::conflict(&key)),
            None => Err(missing(kind, &key)),
        })
        .await
        .map_err(is_final)
    }

    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.store.watchers.feed.next_change(kind, key)
    }
}
