//! `Conditional` for `Broken`, with its faults.

use gateway_storage::{
    ConfigStore, CredentialStore, Error, ErrorKind, Key, OptionalExt, Record, Result,
    history::DocumentKind,
    revision::{Condition, Conditional, Revision, Wake},
};

use super::{Broken, Fault::*};

fn kind_of(record: &Record) -> DocumentKind {
    match record {
        Record::Config { .. } => DocumentKind::Config,
        _ => DocumentKind::Credential,
    }
}

impl Broken {
    async fn found(&self, kind: DocumentKind, key: &Key) -> Result<Option<(Record, Revision)>> {
        self.memory.get_with_revision(kind, key).await.optional()
    }

    async fn put(&self, record: &Record) -> Result<()> {
        match record {
            Record::Credential { id, credential } => self.memory.set_credential(id, credential).await,
            Record::Config { key, value } => self.memory.set_config(key, value).await,
            _ => Ok(()),
        }
    }

    async fn remove(&self, kind: DocumentKind, key: &Key) -> Result<()> {
        match kind {
            DocumentKind::Config => self.memory.delete_config(key).await,
            _ => self.memory.delete_credential(key).await,
        }
    }

    /// The revision that this backend says a record has.
    fn shown(&self, key: &Key, found: Revision) -> Revision {
        if self.has(RevisionIsOfTheKey) { Revision::of(key.as_str().as_bytes()) } else { found }
    }

    fn conflict(&self, error: Error) -> Error {
        match self.fault {
            ConditionIsRetryable if error.kind() == ErrorKind::Conflict => error.with_retryable(true),
            ConditionHasNoKey if error.kind() == ErrorKind::Conflict => {
                Error::new(ErrorKind::Conflict, "changed").with_retryable(false)
            }
            _ => error,
        }
    }
}

impl Conditional for Broken {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let (record, revision) = self.memory.get_with_revision(kind, key).await?;
        Ok((record, self.shown(key, revision)))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        if let Record::Usage { .. } = record {
            return self.memory.set_if(record, condition).await;
        }
        let (kind, key) = (kind_of(record), record.key());
        let found = self.found(kind, key).await?;
        let overwrites = match (self.fault, condition, &found) {
            (AbsentReplaces, Condition::Absent, Some(_))
            | (UnchangedReplacesAny, Condition::Unchanged(_), Some(_))
            | (UnchangedCreates, Condition::Unchanged(_), None) => true,
            (EqualIsStored, _, Some((stored, _))) => stored == record,
            (RevisionIsOfTheKey, Condition::Unchanged(revision), Some((_, found))) => {
                revision == self.shown(key, *found)
            }
            (ConditionIsRacy, Condition::Absent, None) => true,
            (ConditionIsRacy, Condition::Unchanged(revision), Some((_, found))) => revision == *found,
            _ => false,
        };
        if overwrites {
            tokio::task::yield_now().await;
            self.put(record).await?;
            return Ok(self.get_with_revision(kind, key).await?.1);
        }
        let revision = self.memory.set_if(record, condition).await.map_err(|error| self.conflict(error))?;
        if self.has(KindsAreOne) {
            let other = match kind {
                DocumentKind::Config => DocumentKind::Credential,
                _ => DocumentKind::Config,
            };
            drop(self.remove(other, key).await);
        }
        match found {
            Some((_, before)) if self.has(ReturnsOldRevision) => Ok(before),
            _ => Ok(self.shown(key, revision)),
        }
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        if self.has(DeletesAnyRevision) || self.has(RevisionIsOfTheKey) {
            return self.remove(kind, key).await;
        }
        let deleted = self.memory.delete_if(kind, key, revision).await;
        match deleted {
            Err(error) if error.kind() == ErrorKind::NotFound && self.has(DeleteIfMissingIsOk) => Ok(()),
            deleted => deleted.map_err(|error| self.conflict(error)),
        }
    }

    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        if self.has(WakesNever) {
            Some(Box::pin(std::future::pending()))
        } else {
            self.memory.next_change(kind, key)
        }
    }
}
