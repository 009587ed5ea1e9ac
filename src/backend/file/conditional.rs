//! `Conditional` for `File`: the committer compares, one write after another.

use super::{File, cache::weight_of_record, document::Document, draft::Draft, work::work};
use crate::{
    ConfigValue, Credential, Key, Record, Result,
    capability::{Conditional, Wake, document_of},
    codec::RecordKey,
    history::DocumentKind,
    model::{Condition, Revision},
};

fn name(kind: DocumentKind, key: &Key) -> RecordKey {
    match kind {
        DocumentKind::Credential => RecordKey::Credential(key.clone()),
        DocumentKind::Config => RecordKey::Config(key.clone()),
    }
}

fn read(kind: DocumentKind, key: &Key, stored: &[u8]) -> Result<Record> {
    let record = match kind {
        DocumentKind::Credential => {
            Credential::decode(stored).map(|credential| Record::Credential { id: key.clone(), credential })
        }
        DocumentKind::Config => {
            ConfigValue::decode(stored).map(|value| Record::Config { key: key.clone(), value })
        }
    };
    record.map_err(|error| error.with_key(key))
}

/// The revision of the stored record. None: there is no record. A damaged record is an error.
fn stored(draft: &mut Draft<'_>, kind: DocumentKind, key: &Key) -> Result<Option<Revision>> {
    draft.get(&name(kind, key), |bytes| read(kind, key, bytes).map(|_| Revision::of(bytes)))
}

impl Conditional for File {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let bytes = self.store.reader.snapshot()?.get(&name(kind, key))?;
        let bytes = bytes.ok_or_else(|| missing(kind, key))?;
        let is_small = bytes.value().len() <= super::work::SMALL_DOCUMENT;
        let key = key.clone();
        work(self.deadline, is_small, move || {
            Ok((read(kind, &key, bytes.value())?, Revision::of(bytes.value())))
        })
        .await
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let admitted = self.admit(1, weight_of_record(record)).await?;
        let (kind, key, encoded) = document_of(record)?;
        let (key, new) = (key.clone(), Revision::of(&encoded));
        self.write_admitted(admitted, move |draft| {
            condition.check(&key, stored(draft, kind, &key)?)?;
            draft.put_document(kind, key, &encoded)?;
            Ok(new)
        })
        .await
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| match stored(draft, kind, &key)? {
            Some(stored) if stored != revision => Err(Condition::conflict(&key)),
            _ => match kind {
                DocumentKind::Credential => draft.delete_credential(&key),
                DocumentKind::Config => draft.delete_config(&key),
            },
        })
        .await
    }

    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.store.feed.next_change(kind, key)
    }
}

fn missing(kind: DocumentKind, key: &Key) -> crate::Error {
    match kind {
        DocumentKind::Credential => Credential::missing(key),
        DocumentKind::Config => ConfigValue::missing(key),
    }
}
