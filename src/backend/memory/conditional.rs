//! Conditional writes: the revision is computed when it is needed.

use super::{Data, Memory, find};
use crate::{
    Key, Record, Result,
    capability::{Conditional, Wake, document_of},
    error::Kind,
    history::DocumentKind,
    model::{Condition, Revision},
};

fn read(data: &Data, kind: DocumentKind, key: &Key) -> Result<Record> {
    Ok(match kind {
        DocumentKind::Credential => {
            let credential = find(&data.credentials, Kind::Credential, key)?.clone();
            Record::Credential { id: key.clone(), credential }
        }
        DocumentKind::Config => {
            Record::Config { key: key.clone(), value: find(&data.configs, Kind::Config, key)?.clone() }
        }
    })
}

fn revision_of(record: &Record) -> Result<Revision> {
    Ok(Revision::of(&document_of(record)?.2))
}

impl Conditional for Memory {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let record = self.read(|data| read(data, kind, key))?;
        let revision = revision_of(&record)?;
        Ok((record, revision))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, text) = document_of(record)?;
        let new = Revision::of(&text);
        let revision = self.write_checked(
            |data| {
                let stored = read(data, kind, key).and_then(|record| revision_of(&record)).ok();
                condition.check(key, stored).map(|()| new)
            },
            |data| match record.clone() {
                Record::Credential { id, credential } => drop(data.credentials.insert(id, credential)),
                Record::Config { key, value } => drop(data.configs.insert(key, value)),
                Record::Usage { .. } => {}
            },
        )?;
        self.tell(kind, [key]);
        Ok(revision)
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        self.write_checked(
            |data| {
                let stored = revision_of(&read(data, kind, key)?)?;
                if stored == revision { Ok(()) } else { Err(Condition::conflict(key)) }
            },
            |data| match kind {
                DocumentKind::Credential => drop(data.credentials.remove(key)),
                DocumentKind::Config => drop(data.configs.remove(key)),
            },
        )?;
        self.tell(kind, [key]);
        Ok(())
    }

    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.feed.next_change(kind, key)
    }
}
