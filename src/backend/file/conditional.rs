//! `Conditional` for `File`: the committer compares, one write after another.

use super::{File, state::State};
use crate::{
    ErrorKind, Key, Record, Result,
    capability::{Conditional, document_of},
    history::DocumentKind,
    model::{Condition, Revision},
};

fn read(state: &State, kind: DocumentKind, key: &Key) -> Result<Record> {
    Ok(match kind {
        DocumentKind::Credential => {
            Record::Credential { id: key.clone(), credential: state.credential(key)? }
        }
        DocumentKind::Config => Record::Config { key: key.clone(), value: state.config(key)? },
    })
}

/// The revision of the stored record. None: there is no record. A damaged record is an error.
fn stored(state: &State, kind: DocumentKind, key: &Key) -> Result<Option<Revision>> {
    match read(state, kind, key) {
        Ok(record) => Ok(Some(Revision::of(&document_of(&record)?.2))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Conditional for File {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let record = read(&*self.state()?, kind, key)?;
        let revision = Revision::of(&document_of(&record)?.2);
        Ok((record, revision))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, encoded) = document_of(record)?;
        let (record, key, new) = (record.clone(), key.clone(), Revision::of(&encoded));
        self.write(move |draft| {
            condition.check(&key, stored(draft.state(), kind, &key)?)?;
            match record {
                Record::Credential { id, credential } => draft.put_credential(id, credential, encoded),
                Record::Config { key, value } => draft.put_config(key, value, encoded),
                Record::Usage { .. } => {}
            }
            Ok(new)
        })
        .await
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| match stored(draft.state(), kind, &key)? {
            Some(stored) if stored != revision => Err(Condition::conflict(&key)),
            _ => match kind {
                DocumentKind::Credential => draft.delete_credential(&key),
                DocumentKind::Config => draft.delete_config(&key),
            },
        })
        .await
    }
}
