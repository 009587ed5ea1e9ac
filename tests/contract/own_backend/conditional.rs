//! Conditional writes: a revision is a digest of the text that is stored.

use gateway_storage::{
    Error, ErrorKind, Key, Record, Result,
    history::DocumentKind,
    revision::{Condition, Conditional, Revision},
};

use super::{
    Own,
    documents::{document_of, record_of},
};

impl Conditional for Own {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let text = self.get(kind, key)?;
        Ok((record_of(&(kind, key.clone()), &text)?, Revision::of(text.as_bytes())))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (name, text) = document_of(record).ok_or_else(|| {
            Error::new(ErrorKind::InvalidValue, "a counter has no revision").with_key(record.key())
        })?;
        let mut store = self.lock()?;
        condition.check(&name.1, store.documents.get(&name).map(|text| Revision::of(text.as_bytes())))?;
        store.documents.put(name, Some(&text));
        Ok(Revision::of(text.as_bytes()))
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let (name, mut store) = ((kind, key.clone()), self.lock()?);
        let stored = Revision::of(store.documents.find(&name)?.as_bytes());
        Condition::Unchanged(revision).check(key, Some(stored))?;
        store.documents.delete(&name)
    }
}
