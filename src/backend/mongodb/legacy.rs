//! What the Go program left, document by document: where one can't be read the others still are.

use std::{collections::BTreeMap, mem, sync::Arc, vec};

use futures_core::Stream;
use futures_util::stream;
use mongodb::bson::{DateTime, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use serde_json::{Map, Value};

use super::{
    MongoDb, MongoDbOptions, OPEN, Server,
    document::{corrupt, damaged, json_but},
    pool::Lease,
    scan::Pages,
};
use crate::{
    Backend, ConfigValue, Credential, Error, ErrorKind, Key, Record, Result, codec::whole, layer::within,
    model::Piece,
};

/// The collections of the layout, in the order in which they are read, the field that is the key, and what is left out.
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
    /// A handle to read with. No collection of ours is looked for, and none is made.
    pub(crate) async fn open_foreign(url: &str) -> Result<Self> {
        let config = MongoDbOptions::try_from(url)?;
        if !names_database(url) {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "the URL names no database: the Go program's was in its configuration (mongodb://HOST/DATABASE)",
            ));
        }
        let deadline = config.deadline;
        let opened = async {
            let mongodb = Self { server: Arc::new(Server::new(config).await?), deadline };
            mongodb.check_server().await?;
            Ok(mongodb)
        };
        let mongodb: Self = within(deadline, OPEN, opened).await?;
        match mongodb.foreign_collections().await {
            Ok(()) => Ok(mongodb),
            Err(error) => {
                mongodb.close().await?;
                Err(error)
            }
        }
    }

    /// Refuses a database without the layout, and one that holds a store of ours.
    async fn foreign_collections(&self) -> Result<()> {
        let call = self.call()?;
        let lease = call.lease().await?;
        let names = call.ask(lease.database.list_collection_names()).await?;
        if names.iter().any(|name| name == "meta")
            && call
                .ask(lease.database.collection::<RawDocumentBuf>("meta").find_one(doc! { "_id": "schema" }))
                .await?
                .is_some()
        {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "the database holds a store of this crate: copy it instead",
            ));
        }
        if !names.iter().any(|name| COLLECTIONS[..3].iter().any(|(known, ..)| known == name)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the database holds none of the Go program's collections (`credentials`, `configs`, `usage_stats`)",
            ));
        }
        Ok(())
    }

    /// A remark for each collection that is no part of the layout.
    async fn others(&self) -> Result<Vec<Piece>> {
        let call = self.call()?;
        let lease = call.lease().await?;
        let mut names = call.ask(lease.database.list_collection_names()).await?;
        names.retain(|name| {
            !name.starts_with("system.") && COLLECTIONS.iter().all(|(known, ..)| known != name)
        });
        names.sort_unstable();
        Ok(names
            .into_iter()
            .map(|name| Piece::left_out(name, "a collection that is no part of the layout"))
            .collect())
    }

    /// Every record of the collections, sorted, and a remark for every other document and collection. A snapshot, but on a standalone server.
    pub(crate) fn adopt(&self) -> impl Stream<Item = Result<Piece>> + Send + 'static {
        let adoption = Adoption {
            pages: Pages::of(self),
            page: Vec::new().into_iter(),
            is_listed: false,
            place: 0,
            is_begun: false,
            pending: None,
        };
        stream::unfold(Some(adoption), |adoption| async {
            let mut adoption = adoption?;
            match adoption.next().await {
                Ok(piece) => piece.map(|piece| (Ok(piece), Some(adoption))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

struct Adoption {
    pages: Pages,
    page: vec::IntoIter<Piece>,
    is_listed: bool,
    /// Which of the collections, and whether something was found in it.
    place: usize,
    is_begun: bool,
    pending: Option<Found>,
}

impl Adoption {
    async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.page.next() {
                return Ok(Some(piece));
            }
            if !mem::replace(&mut self.is_listed, true) {
                self.page = self.pages.mongodb.others().await?.into_iter();
                continue;
            }
            if self.place == COLLECTIONS.len() {
                return Ok(None);
            }
            self.page = self.read_page().await?.into_iter();
        }
    }

    async fn read_page(&mut self) -> Result<Vec<Piece>> {
        let (name, key, left_out) = COLLECTIONS[self.place];
        let (pending, is_begun, mut page) = (&mut self.pending, &mut self.is_begun, Vec::new());
        let each = |document: &RawDocument| {
            if let Some(reason) = left_out.filter(|_| !mem::replace(is_begun, true)) {
                page.push(Piece::left_out(name, reason));
            }
            let place = place(name, document);
            if name.starts_with("config_plan") {
                page.push(Piece::left_out(place, "the record of a config plan of the Go program"));
                return Ok(());
            }
            match (read(name, key, document, &place, &mut page), &mut *pending) {
                // It is about this document alone.
                (Err(error), _) => page.push(Piece::unreadable(place, &error)),
                (Ok(found), Some(before)) if before.key() == found.key() => {
                    before.merge(found, place, &mut page);
                }
                (Ok(found), pending) => {
                    if let Some(before) = pending.replace(found) {
                        before.finish(&mut page);
                    }
                }
            }
            Ok(())
        };
        let collection = |lease: &Lease| lease.database.collection(name);
        if !self.pages.read(collection, doc! { key: 1, "_id": 1 }, each).await? {
            if let Some(last) = self.pending.take() {
                last.finish(&mut page);
            }
            (self.place, self.is_begun) = (self.place + 1, false);
        }
        Ok(page)
    }
}

fn place(collection: &str, document: &RawDocument) -> String {
    let id = match document.get("_id") {
        Ok(Some(RawBsonRef::String(id))) => id.to_owned(),
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        _ => "(no name)".to_owned(),
    };
    format!("{collection} {id}")
}

/// What a document holds. Its key may come again: the Go program had no unique index, so racing writers made a document each.
enum Found {
    /// A record, where it is, and when it was changed.
    Document(Record, String, Option<DateTime>),
    Counters(Key, BTreeMap<Key, i64>),
}

impl Found {
    fn key(&self) -> &Key {
        match self {
            Self::Document(record, ..) => record.key(),
            Self::Counters(key, _) => key,
        }
    }

    /// The next document of the same key. Of values the last one that was changed is in use; counters were counted in one
    /// document or in the other.
    fn merge(&mut self, next: Self, next_place: String, page: &mut Vec<Piece>) {
        match (self, next) {
            (Self::Counters(_, sums), Self::Counters(_, counts)) => {
                page.push(Piece::changed(
                    next_place.clone(),
                    "a further document of its key: its counters are added up",
                ));
                for (field, count) in counts {
                    let sum = sums.entry(field).or_default();
                    match sum.checked_add(count) {
                        Some(total) => *sum = total,
                        None => {
                            page.push(Piece::not_understood(
                                next_place.clone(),
                                "a sum of its counters leaves 64 bits",
                            ));
                        }
                    }
                }
            }
            (Self::Document(record, place, changed), Self::Document(next, _, next_changed)) => {
                let why = match next_changed == *changed {
                    true => {
                        "a further document of its key, and no time tells which is newer: the other one is adopted"
                    }
                    false => "another document of its key was changed later: that one is adopted",
                };
                let mut older = next_place.clone();
                if next_changed > *changed {
                    older = mem::replace(place, next_place);
                    (*record, *changed) = (next, next_changed);
                }
                page.push(Piece::not_understood(older, why));
            }
            // They are of one collection.
            (Self::Counters(..), Self::Document(..)) | (Self::Document(..), Self::Counters(..)) => {}
        }
    }

    fn finish(self, page: &mut Vec<Piece>) {
        match self {
            Self::Document(record, ..) => page.push(Piece::Record(record)),
            Self::Counters(key, counts) => page.extend(
                counts
                    .into_iter()
                    .map(|(field, count)| Piece::Record(Record::Usage { key: key.clone(), field, count })),
            ),
        }
    }
}

fn read(
    collection: &str,
    key_field: &str,
    document: &RawDocument,
    place: &str,
    page: &mut Vec<Piece>,
) -> Result<Found> {
    let name =
        document.get_str(key_field).map_err(|_| corrupt("the document's key is missing, or no text"))?;
    let key = Key::new(name)?;
    let (mut changed, mut times, mut fields) = (None, false, Map::new());
    let mut counts = BTreeMap::new();
    for field in document {
        let (name, value) = field.map_err(damaged)?;
        match (name.as_str(), value) {
            ("_id", _) => {}
            ("updated_at", RawBsonRef::DateTime(time)) => changed = Some(time),
            (name, _) if name == key_field => {}
            (name, value) if collection == "usage_stats" => count(place, name, value, &mut counts, page)?,
            (name, value) => {
                times |= has_time(value);
                fields.insert(name.to_owned(), json_but(value, as_go_reads_it)?);
            }
        }
    }
    if times {
        page.push(Piece::changed(place, "a time in it is adopted as text"));
    }
    Ok(match collection {
        "usage_stats" => Found::Counters(key, counts),
        "credentials" => {
            let credential = Credential::new(fields)?;
            Found::Document(Record::Credential { id: key, credential }, place.to_owned(), changed)
        }
        _ => {
            let value = fields.remove("value").ok_or_else(|| corrupt("the document has no `value`"))?;
            if fields.remove("key").is_some_and(|name| name != key.as_str()) {
                return Err(corrupt("the document's `key` and `_id` differ"));
            }
            if !fields.is_empty() {
                page.push(Piece::changed(place, "its fields beside `value` are left out"));
            }
            let value = ConfigValue::new(value)?;
            Found::Document(Record::Config { key, value }, place.to_owned(), changed)
        }
    })
}

/// Counts one counter. The server took `a.b` for a path, so documents in the document are such names.
fn count(
    place: &str,
    name: &str,
    value: RawBsonRef<'_>,
    counts: &mut BTreeMap<Key, i64>,
    page: &mut Vec<Piece>,
) -> Result<()> {
    if let RawBsonRef::Document(parts) = value {
        page.push(Piece::changed(
            format!("{place} {name}"),
            "a nested document: its counters' names are joined by dots",
        ));
        for part in parts {
            let (part, value) = part.map_err(damaged)?;
            count(place, &format!("{name}.{}", part.as_str()), value, counts, page)?;
        }
        return Ok(());
    }
    let number = json_but(value, as_go_reads_it).ok().and_then(|value| value.as_i64());
    match (Key::new(name), number) {
        (Ok(field), Some(number)) => drop(counts.insert(field, number)),
        (Err(error), _) => page.push(Piece::unreadable(format!("{place} {name}"), &error)),
        (Ok(_), None) => {
            let reason = "the counter is not an integer of 64 bits";
            page.push(Piece::not_understood(format!("{place} {name}"), reason));
        }
    }
    Ok(())
}

/// What the Go program's own JSON was of: 5.0 is written as 5, and a time as text.
fn as_go_reads_it(value: RawBsonRef<'_>) -> Option<Value> {
    match value {
        RawBsonRef::Double(number) => whole(number).map(Value::from),
        RawBsonRef::DateTime(time) => time.try_to_rfc3339_string().ok().map(Value::String),
        _ => None,
    }
}

/// Whether a value is a time, or holds one.
fn has_time(value: RawBsonRef<'_>) -> bool {
    match value {
        RawBsonRef::DateTime(_) => true,
        RawBsonRef::Document(fields) => fields.into_iter().flatten().any(|(_, value)| has_time(value)),
        RawBsonRef::Array(items) => items.into_iter().flatten().any(has_time),
        _ => false,
    }
}

/// Whether a URL says which database is meant.
fn names_database(url: &str) -> bool {
    let place = url.split_once("://").map_or("", |(_, place)| place);
    let place = place.split('?').next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
    place.split_once('/').is_some_and(|(_, database)| !database.is_empty())
}
