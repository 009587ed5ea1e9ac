//! Conditional writes: the filter compares the field `rev`, which every write sets.
//!
//! A write that matches nothing looks at the stored document to find out why. Documents of older versions of
//! this crate have no `rev`: they get one first, which no other write expects.

use mongodb::{
    bson::{Document, RawDocumentBuf, doc},
    options::ReadConcern,
};

use super::{
    MongoDb,
    command::{CollectionOf, FindOneAnd, by_id, find_one, find_one_and},
    document,
    pool::Permit,
    server::Call,
};
use crate::{
    Error, ErrorKind, Key, Outcome, Record, Result,
    backend::remote::Backoff,
    capability::{Conditional, Wake, document_of},
    error::Kind,
    history::DocumentKind,
    model::{Condition, Revision},
};

pub(super) fn of(kind: DocumentKind) -> (Kind, CollectionOf) {
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

impl MongoDb {
    /// Replaces or deletes (None) the document with this revision. [`NotFound`](ErrorKind::NotFound) if there
    /// is no document.
    async fn change_if(
        &self,
        kind: DocumentKind,
        key: &Key,
        expected: Revision,
        body: Option<&RawDocumentBuf>,
    ) -> Result<()> {
        let (call, (missing, collection)) = (self.call()?, of(kind));
        let mut query = by_id(key);
        query.insert("rev", expected.to_string());
        let change = || body.map_or(FindOneAnd::Delete, |body| FindOneAnd::ReplaceExisting(body.clone()));
        let mut backoff = Backoff::until(call.deadline);
        while find_one_and(&call, collection, &query, change).await?.is_none() {
            let found =
                latest(&call, collection, key).await?.ok_or_else(|| Error::not_found(missing, key))?;
            match document::revision(&found) {
                // It got this revision between the two commands.
                Some(revision) if revision == expected => drop(query.insert("rev", expected.to_string())),
                None if read(kind, key, &found)?.1 == expected => {
                    let own = Revision::new(std::array::from_fn(|_| fastrand::u8(..)));
                    if add_revision(&call, collection, key, &found, own).await? {
                        query.insert("rev", own.to_string());
                        continue;
                    }
                }
                _ => return Err(Condition::conflict(key)),
            }
            if !backoff.pause().await {
                let message = "concurrent changes of the record were in the way until the deadline";
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
        Ok(())
    }
}

/// The document, even if the majority does not have it yet: it was compared as it is on the primary.
async fn latest(call: &Call<'_>, collection: CollectionOf, key: &Key) -> Result<Option<RawDocumentBuf>> {
    let find = |permit: Permit| async move {
        collection(&permit).find_one(by_id(key)).read_concern(ReadConcern::local()).await
    };
    call.read(find).await
}

/// Adds a revision to a document without one. False: it is not the same document any more.
///
/// The revision is not that of the value, because the server compares 1 and 1.0 as equal. So the comparison
/// of all bytes comes after, and no other write may take the document until then.
async fn add_revision(
    call: &Call<'_>,
    collection: CollectionOf,
    key: &Key,
    found: &RawDocumentBuf,
    revision: Revision,
) -> Result<bool> {
    let expected = Document::try_from(&**found).map_err(document::damaged)?;
    let mut query = by_id(key);
    // In a query by fields, `[1]` would also match `[[1]]`, and null a missing field.
    query.insert("$expr", doc! { "$eq": ["$$ROOT", { "$literal": expected }] });
    let fields = doc! { "rev": revision.to_string() };
    let set = find_one_and(call, collection, &query, || FindOneAnd::Set(fields.clone())).await;
    // The value is not changed.
    let before = set.map_err(|error| error.with_outcome(Outcome::NotApplied))?;
    Ok(before.is_some_and(|before| before.as_bytes() == found.as_bytes()))
}

impl Conditional for MongoDb {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let (missing, collection) = of(kind);
        let found = find_one(&self.call()?, collection, missing, key).await;
        found.and_then(|found| read(kind, key, &found)).map_err(|error| error.with_key(key))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, text) = document_of(record)?;
        let body = match record {
            Record::Credential { credential, .. } => document::from_credential(credential),
            Record::Config { value, .. } => document::from_config(value),
            Record::Usage { .. } => RawDocumentBuf::new(),
        };
        let holds = match condition {
            Condition::Absent => {
                let body = Document::try_from(&*body).map_err(document::damaged)?;
                let create = || FindOneAnd::Create(body.clone());
                let existing = find_one_and(&self.call()?, of(kind).1, &by_id(key), create).await;
                existing.map(|existing| existing.is_none())
            }
            Condition::Unchanged(expected) => match self.change_if(kind, key, expected, Some(&body)).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                result => result.map(|()| true),
            },
        };
        match holds.map_err(|error| error.with_key(key))? {
            true => Ok(Revision::of(&text)),
            false => Err(Condition::conflict(key)),
        }
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        self.change_if(kind, key, revision, None).await.map_err(|error| error.with_key(key))
    }
    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.server.watching.feed.next_change(kind, key)
    }
}
