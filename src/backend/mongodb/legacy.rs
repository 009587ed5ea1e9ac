//! Reads legacy data, the Go program's documents. An unreadable document does not stop the others.

use std::{collections::BTreeMap, mem};

use futures_core::Stream;
use mongodb::bson::{DateTime, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use serde_json::{Map, Value};

use super::{
    MongoDb, MongoDbOptions, OPEN,
    document::{corrupt, damaged, json_with},
    pool::Permit,
    scan::Pages,
};
use crate::{
    Backend, ConfigValue, Credential, Error, ErrorKind, Key, Record, Result,
    capability::pages,
    codec::{Location, invalid, whole},
    layer::within,
    model::Piece,
};

/// The collections of the layout in reading order: name, key field, and the remark on omitted fields.
const COLLECTIONS: [(&str, &str, Option<&str>); 5] = [
    (
        "credentials",
        "id",
        Some("`_id` and `updated_at` of every document, which the Go program added; `id` is the key"),
    ),
    ("configs", "_id", Some("`updated_at` of every document, which the Go program added; `_id` is the key")),
    (
        "usage_stats",
        "key",
        Some("`_id` and `updated_at` of every document, which the Go program added; `key` is the key"),
    ),
    ("config_plan_commits", "_id", None),
    ("config_plan_locks", "_id", None),
];

impl MongoDb {
    /// Opens a handle for reading legacy data: it needs and makes no store of this crate.
    pub(crate) async fn open_legacy(url: &str) -> Result<Self> {
        let options = MongoDbOptions::try_from(url)?;
        let parts = Location::parse(url, &["mongodb", "mongodb+srv"])?.authority();
        if parts.is_none_or(|parts| parts.path.is_empty()) {
            return Err(invalid(
                "the URL names no database: take it from the Go program's configuration (mongodb://HOST/DATABASE)",
            ));
        }
        let mongodb: Self = within(options.deadline, OPEN, Self::connect(options)).await?;
        match mongodb.check_legacy_layout().await {
            Ok(()) => Ok(mongodb),
            Err(error) => {
                mongodb.close().await?;
                Err(error)
            }
        }
    }

    /// Refuses a database without the layout, and one that holds a store of this crate.
    async fn check_legacy_layout(&self) -> Result<()> {
        let call = self.call()?;
        let permit = call.permit().await?;
        let meta = permit.database.collection::<RawDocumentBuf>("meta");
        if call.ask(meta.find_one(doc! { "_id": "schema" })).await?.is_some() {
            return Err(invalid("the database holds a store of this crate: copy it instead"));
        }
        let names = call.ask(permit.database.list_collection_names()).await?;
        if !names.iter().any(|name| COLLECTIONS[..3].iter().any(|(known, ..)| known == name)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the database holds none of the Go program's collections (`credentials`, `configs`, `usage_stats`)",
            ));
        }
        Ok(())
    }

    /// A remark for each collection that is no part of the layout.
    async fn other_collections(&self) -> Result<Vec<Piece>> {
        let call = self.call()?;
        let permit = call.permit().await?;
        let mut names = call.ask(permit.database.list_collection_names()).await?;
        names.retain(|name| {
            !name.starts_with("system.") && COLLECTIONS.iter().all(|(known, ..)| known != name)
        });
        names.sort_unstable();
        Ok(names
            .into_iter()
            .map(|name| Piece::left_out(name, "a collection that is no part of the layout"))
            .collect())
    }

    /// Every record of the collections, sorted, and a remark for every other document and collection. They
    /// come from one snapshot, except on a standalone server.
    pub(crate) fn legacy(&self) -> impl Stream<Item = Result<Piece>> + Send + 'static {
        let legacy = Legacy {
            pages: Pages::of(self),
            is_listed: false,
            collections: &COLLECTIONS,
            is_begun: false,
            pending: None,
        };
        pages(legacy, Legacy::next)
    }
}

struct Legacy {
    pages: Pages,
    /// Whether the remarks on other collections were made.
    is_listed: bool,
    /// The collections that are left, the current one first, and whether a document was found in it.
    collections: &'static [(&'static str, &'static str, Option<&'static str>)],
    is_begun: bool,
    /// The last key's data: the next document may have the same key.
    pending: Option<Found>,
}

impl Legacy {
    /// The next page, and the reader after it.
    async fn next(mut self) -> Result<Option<(Vec<Piece>, Self)>> {
        if !mem::replace(&mut self.is_listed, true) {
            return Ok(Some((self.pages.mongodb.other_collections().await?, self)));
        }
        let [(name, key, left_out), rest @ ..] = self.collections else { return Ok(None) };
        let (name, key) = (*name, *key);
        let (pending, is_begun, mut page) = (&mut self.pending, &mut self.is_begun, Vec::new());
        let each = |document: &RawDocument| {
            if let Some(reason) = left_out.filter(|_| !mem::replace(is_begun, true)) {
                page.push(Piece::left_out(name, reason));
            }
            let location = location(name, document);
            if name.starts_with("config_plan") {
                page.push(Piece::left_out(location, "the record of a config plan of the Go program"));
                return Ok(());
            }
            match (read(name, key, document, &location, &mut page), &mut *pending) {
                // The error concerns this document alone.
                (Err(error), _) => page.push(Piece::unreadable(location, &error)),
                (Ok(found), Some(previous)) if previous.key == found.key => previous.merge(found, &mut page),
                (Ok(found), pending) => {
                    if let Some(previous) = pending.replace(found) {
                        previous.finish(&mut page);
                    }
                }
            }
            Ok(())
        };
        let collection = |permit: &Permit| permit.database.collection(name);
        if !self.pages.read(collection, doc! { key: 1, "_id": 1 }, each).await? {
            if let Some(last) = self.pending.take() {
                last.finish(&mut page);
            }
            (self.collections, self.is_begun) = (rest, false);
        }
        Ok(Some((page, self)))
    }
}

/// Where a document is, for remarks.
fn location(collection: &str, document: &RawDocument) -> String {
    let id = match document.get("_id") {
        Ok(Some(RawBsonRef::String(id))) => id.to_owned(),
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        _ => "(no name)".to_owned(),
    };
    format!("{collection} {id}")
}

/// The data of one key. Several documents can have the same key: the Go program had no unique index, so
/// concurrent writers could each make one.
struct Found {
    key: Key,
    location: String,
    /// The time of its last change.
    changed: Option<DateTime>,
    /// None for a usage record, which has counters instead.
    record: Option<Record>,
    counts: BTreeMap<Key, i64>,
}

impl Found {
    /// Adds the next document of the same key. The value that was changed last wins. Counters are added up,
    /// because each was counted in one of the documents.
    fn merge(&mut self, next: Self, page: &mut Vec<Piece>) {
        if self.record.is_some() {
            let reason = match next.changed == self.changed {
                true => {
                    "a further document of its key, with no time that shows which is newer: the other document is adopted"
                }
                false => "another document of its key was changed later: that one is adopted",
            };
            let older = if next.changed > self.changed { mem::replace(self, next) } else { next };
            page.push(Piece::not_understood(older.location, reason));
            return;
        }
        let reason = "a further document of its key: its counters are added up";
        page.push(Piece::changed(next.location.clone(), reason));
        for (field, count) in next.counts {
            let sum = self.counts.entry(field).or_default();
            match sum.checked_add(count) {
                Some(total) => *sum = total,
                None => {
                    let reason = "a sum of its counters exceeds 64 bits";
                    page.push(Piece::not_understood(next.location.clone(), reason));
                }
            }
        }
    }

    fn finish(self, page: &mut Vec<Piece>) {
        let counter = |(field, count)| Record::Usage { key: self.key.clone(), field, count };
        page.extend(self.record.into_iter().chain(self.counts.into_iter().map(counter)).map(Piece::Record));
    }
}

fn read(
    collection: &str,
    key_field: &str,
    document: &RawDocument,
    location: &str,
    page: &mut Vec<Piece>,
) -> Result<Found> {
    let name =
        document.get_str(key_field).map_err(|_| corrupt("the document's key is missing or not a string"))?;
    let key = Key::new(name)?;
    let (mut changed, mut times, mut fields) = (None, false, Map::new());
    let mut counts = BTreeMap::new();
    for field in document {
        let (name, value) = field.map_err(damaged)?;
        match (name.as_str(), value) {
            ("_id", _) => {}
            ("updated_at", RawBsonRef::DateTime(time)) => changed = Some(time),
            (name, _) if name == key_field => {}
            (name, value) if collection == "usage_stats" => count(location, name, value, &mut counts, page)?,
            (name, value) => {
                times |= has_time(value);
                fields.insert(name.to_owned(), json_with(value, go_json)?);
            }
        }
    }
    if times {
        page.push(Piece::changed(location, "a time in it is adopted as text"));
    }
    let record = match collection {
        "usage_stats" => None,
        "credentials" => Some(Record::Credential { id: key.clone(), credential: Credential::new(fields)? }),
        _ => {
            let value = fields.remove("value").ok_or_else(|| corrupt("the document has no `value`"))?;
            if fields.remove("key").is_some_and(|name| name != key.as_str()) {
                return Err(corrupt("the document's `key` and `_id` differ"));
            }
            if !fields.is_empty() {
                page.push(Piece::changed(location, "its fields beside `value` are left out"));
            }
            Some(Record::Config { key: key.clone(), value: ConfigValue::new(value)? })
        }
    };
    Ok(Found { key, location: location.to_owned(), changed, record, counts })
}

/// Reads one counter. The server took a name like `a.b` for a path, so nested documents are such names.
fn count(
    location: &str,
    name: &str,
    value: RawBsonRef<'_>,
    counts: &mut BTreeMap<Key, i64>,
    page: &mut Vec<Piece>,
) -> Result<()> {
    if let RawBsonRef::Document(parts) = value {
        page.push(Piece::changed(
            format!("{location} {name}"),
            "a nested document: its counters' names are joined by dots",
        ));
        for part in parts {
            let (part, value) = part.map_err(damaged)?;
            count(location, &format!("{name}.{}", part.as_str()), value, counts, page)?;
        }
        return Ok(());
    }
    let number = json_with(value, go_json).ok().and_then(|value| value.as_i64());
    match (Key::new(name), number) {
        (Ok(field), Some(number)) => drop(counts.insert(field, number)),
        (Err(error), _) => page.push(Piece::unreadable(format!("{location} {name}"), &error)),
        (Ok(_), None) => {
            let reason = "the counter is not an integer of 64 bits";
            page.push(Piece::not_understood(format!("{location} {name}"), reason));
        }
    }
    Ok(())
}

/// Converts values as the Go program's JSON did: 5.0 is written as 5, and a time as text.
fn go_json(value: RawBsonRef<'_>) -> Option<Value> {
    match value {
        RawBsonRef::Double(number) => whole(number).map(Value::from),
        RawBsonRef::DateTime(time) => time.try_to_rfc3339_string().ok().map(Value::String),
        _ => None,
    }
}

/// Whether a value is a time or contains one.
fn has_time(value: RawBsonRef<'_>) -> bool {
    match value {
        RawBsonRef::DateTime(_) => true,
        RawBsonRef::Document(fields) => fields.into_iter().flatten().any(|(_, value)| has_time(value)),
        RawBsonRef::Array(items) => items.into_iter().flatten().any(has_time),
        _ => false,
    }
}
