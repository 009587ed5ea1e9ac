//! Conditional writes: the filter compares the field `rev`, which every write sets.
//!
//! A write that matches nothing looks at the stored document to find out why. Documents of older versions of
//! this crate have no `rev`: they get it first.

use mongodb::{
    bson::{Document, RawDocumentBuf, doc},
    options::ReadConcern,
};

use super::{
    MongoDb,
    command::{CollectionOf, find_one},
    document, error,
    pool::Permit,
    server::Call,
};
use crate::{
    Error, ErrorKind, Key, Outcome, Record, Result,
    backend::remote::backoff::Backoff,
    capability::document_of,
    error::Kind,
    history::DocumentKind,
    revision::{Condition, Conditional, Revision},
};

fn of(kind: DocumentKind) -> (Kind, CollectionOf) {
    match kind {
        DocumentKind::Credential => (Kind::Credential, |pool| &pool.credentials),
        DocumentKind::Config => (Kind::Config, |pool| &pool.configs),
    }
}

fn read(kind: DocumentKind, key: &Key, found: &RawDocumentBuf) -> Result<(Record, Revision)> {
    let record = match kind {
        DocumentKind::Credential => {
            Record::Credential { id: key.clone(), credential: document::credential(key, found)? }
        }
        DocumentKind::Config => Record::Config { key: key.clone(), value: document::config(key, found)? },
    };
    let revision = match document::revision(found) {
        Some(revision) => revision,
        None => Revision::of(&document_of(&record)?.2),
    };
    Ok((record, revision))
}

/// A change of one document that has one of these revisions.
struct Change<'c> {
    kind: DocumentKind,
    key: &'c Key,
    revisions: &'c [Revision],
    /// The new document. None: delete it.
    body: Option<RawDocumentBuf>,
    /// Whether the document is created if there is none.
    creates: bool,
}

impl Change<'_> {
    /// Makes the change. [`NotFound`](ErrorKind::NotFound) if there is no document.
    async fn run(self, call: &Call<'_>) -> Result<()> {
        let mut backoff = Backoff::until(call.deadline);
        loop {
            if self.attempt(call).await? {
                return Ok(());
            }
            match self.stored(call).await? {
                // It was deleted between the two commands.
                None if self.creates => {}
                None => return Err(Error::not_found(of(self.kind).0, self.key)),
                Some(found) => {
                    let stored = document::revision(&found);
                    let revision = match stored {
                        Some(revision) => revision,
                        None => read(self.kind, self.key, &found)?.1,
                    };
                    if !self.revisions.contains(&revision) {
                        return Err(Condition::conflict(self.key));
                    }
                    if stored.is_none() {
                        self.add_revision(call, &found, revision).await?;
                    }
                }
            }
            if !backoff.pause().await {
                let message = "concurrent changes of the record were in the way until the deadline";
                return Err(Error::new(ErrorKind::Busy, message).with_key(self.key));
            }
        }
    }

    /// Whether a document was changed or created.
    async fn attempt(&self, call: &Call<'_>) -> Result<bool> {
        let revisions: Vec<String> = self.revisions.iter().map(Revision::to_string).collect();
        let query = doc! { "_id": self.key.as_str(), "rev": { "$in": revisions } };
        let (collection, creates) = (of(self.kind).1, self.creates);
        let request = |permit: Permit| {
            let (query, body, max_time) = (query.clone(), self.body.clone(), call.server_time());
            async move {
                let (collection, id) = (collection(&permit), doc! { "_id": 1 });
                let changed = match body {
                    Some(body) => {
                        let replace = collection.find_one_and_replace(query, body).upsert(creates);
                        replace.projection(id).max_time(max_time).await
                    }
                    None => collection.find_one_and_delete(query).projection(id).max_time(max_time).await,
                };
                match changed {
                    // There is a document with another revision.
                    Err(error) if error::code_of(&error) == Some(error::DUPLICATE_KEY) => Ok(false),
                    changed => Ok(changed?.is_some() || creates),
                }
            }
        };
        call.write(call.permit().await?, request).await
    }

    /// The stored document, even if the majority does not have it yet: the attempt saw the same.
    async fn stored(&self, call: &Call<'_>) -> Result<Option<RawDocumentBuf>> {
        let find = |permit: Permit| async move {
            let find = of(self.kind).1(&permit).find_one(doc! { "_id": self.key.as_str() });
            find.read_concern(ReadConcern::local()).await
        };
        call.read(find).await
    }

    /// Adds its revision to a document without one, if it is still the same.
    async fn add_revision(&self, call: &Call<'_>, found: &RawDocumentBuf, revision: Revision) -> Result<()> {
        let same = Document::try_from(&**found).map_err(document::damaged)?;
        // A filter by fields would let a list match an element of it, and null what is missing.
        let is_same = doc! { "$eq": ["$$ROOT", { "$literal": same }] };
        let query = doc! { "_id": self.key.as_str(), "$expr": is_same };
        let collection = of(self.kind).1;
        let request = |permit: Permit| {
            let (query, max_time) = (query.clone(), call.server_time());
            let set = doc! { "$set": { "rev": revision.to_string() } };
            async move {
                let update = collection(&permit).find_one_and_update(query, set);
                update.projection(doc! { "_id": 1 }).max_time(max_time).await.map(drop)
            }
        };
        // The record itself is not changed by it.
        let added = call.write(call.permit().await?, request).await;
        added.map_err(|error| error.with_outcome(Outcome::NotApplied))
    }
}

impl Conditional for MongoDb {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let (missing, collection) = of(kind);
        read(kind, key, &find_one(&self.call()?, collection, missing, key).await?)
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, text) = document_of(record)?;
        let new = Revision::of(&text);
        let body = match record {
            Record::Credential { credential, .. } => Some(document::from_credential(credential)),
            Record::Config { value, .. } => Some(document::from_config(value)),
            Record::Usage { .. } => None,
        };
        let (revisions, creates) = match condition {
            Condition::Absent => (vec![new], true),
            Condition::Unchanged(expected) => (vec![expected, new], false),
        };
        let change = Change { kind, key, revisions: &revisions, body, creates };
        match change.run(&self.call()?).await {
            Ok(()) => Ok(new),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Condition::conflict(key)),
            Err(error) => Err(error),
        }
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let change = Change { kind, key, revisions: &[revision], body: None, creates: false };
        change.run(&self.call()?).await
    }
}
