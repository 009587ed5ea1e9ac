//! The export document of the Go program gcli2api-go: [`read_go`], [`write_go`].

use std::{
    cell::Cell,
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    io::{BufRead, BufReader, Read},
    pin::pin,
};

use futures_core::Stream;
use futures_util::StreamExt;
use serde::{
    Serialize,
    de::{Deserializer, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, error::Category};
use tokio::io::AsyncWrite;

use super::{
    read,
    write::{failed, send},
};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, Record, RecordKind, Result,
    archive::Header,
    codec::{RecordKey, whole},
    model::{
        BYTE_ORDER_MARK, Members, Refused, Remark, Watched, rfc3339_seconds, time::created, without_mark,
    },
};

/// The largest document that [`read_go`] accepts, in bytes: 1 GiB.
pub const MAX_GO_BYTES: u64 = 1 << 30;

/// A document that the Go program gcli2api-go exported. As JSON its credentials are redacted: see [`Record`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GoDocument {
    /// The backend that exported it, as stated in the document.
    pub backend: Option<String>,
    /// The time of the export, as stated in the document.
    pub exported_at: Option<String>,
    /// The records, sorted as in an export.
    pub records: Vec<Record>,
    /// The entries that can't be stored as records, each
    /// [`NotUnderstood`](crate::model::RemarkKind::NotUnderstood). Their `place` is `credentials`, `configs`
    /// or `usage`, then the key, then the field.
    pub remarks: Vec<Remark>,
}

/// Whether a file that begins with these bytes may be a gcli2api-go document, and not an export of this
/// crate.
#[must_use]
pub fn is_go(beginning: &[u8]) -> bool {
    let beginning = without_mark(beginning);
    !super::is_export(beginning) && beginning.trim_ascii_start().starts_with(b"{")
}

/// Reads a document of gcli2api-go: `{"backend": "..", "exported_at": "..", "credentials": {id: {..}},
/// "configs": {key: ..}, "usage": {key: {field: count}}}`.
///
/// The records are not sorted, so all of them are held in memory. Values are taken unchanged. A count may be
/// a string with a number, as the program's Redis backend exported it. A byte order mark is skipped. The
/// document has no digest: a change that leaves it valid JSON goes unnoticed.
///
/// Blocks while `input` blocks.
///
/// # Errors
///
/// [`Corrupt`](ErrorKind::Corrupt) with line and column, if it is not such a document or is truncated;
/// [`TooLarge`](ErrorKind::TooLarge) over [`MAX_GO_BYTES`]; any error of `input`.
pub fn read_go(input: impl Read) -> Result<GoDocument> {
    let mut limited = input.take(MAX_GO_BYTES + 1);
    let seen = Cell::new(None);
    let mut buffered = BufReader::new(&mut limited);
    if buffered.fill_buf().map_err(read::failed)?.starts_with(BYTE_ORDER_MARK) {
        buffered.consume(BYTE_ORDER_MARK.len());
    }
    let watched = Watched::new(buffered, &seen);
    let mut parser = serde_json::Deserializer::from_reader(watched);
    let parsed =
        parser.deserialize_map(Document { seen: &seen }).and_then(|found| parser.end().map(|()| found));
    drop(parser);
    if limited.limit() == 0 {
        let message = format!("the gcli2api-go document is too large: the limit is {MAX_GO_BYTES} bytes");
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    let found = parsed.map_err(|error| {
        let what = match error.classify() {
            Category::Io => return read::failed(error.into()),
            Category::Eof => "unexpected end",
            Category::Syntax => "invalid JSON",
            Category::Data => "unexpected type",
        };
        let (line, column) = (error.line(), error.column());
        let message = format!("not a gcli2api-go document: {what} at line {line} column {column}");
        Error::new(ErrorKind::Corrupt, message)
    })?;
    if !found.has_section {
        let message = "not a gcli2api-go document: it has no credentials, configs or usage";
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let Found { backend, exported_at, records, remarks, .. } = found;
    Ok(GoDocument { backend, exported_at, records: records.into_values().collect(), remarks })
}

#[derive(Default)]
struct Found {
    backend: Option<String>,
    exported_at: Option<String>,
    has_section: bool,
    records: BTreeMap<RecordKey, Record>,
    remarks: Vec<Remark>,
}

impl Found {
    fn add(&mut self, place: &[&str], record: Result<Record>) {
        let place = place.join("/");
        let remark = match record {
            Ok(record) => match self.records.entry(RecordKey::from(&record)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(record);
                    return;
                }
                Entry::Occupied(_) => Remark::not_understood(place, "a duplicate; the first one is used"),
            },
            Err(error) => Remark::unreadable(place, &error),
        };
        self.remarks.push(remark);
    }

    fn entry(&mut self, kind: RecordKind, name: &str, value: Value, refused: Option<Refused>) {
        let key = match Key::new(name) {
            Ok(key) => key,
            Err(error) => return self.add(&[section(kind), name], Err(error)),
        };
        // Counters are checked one by one.
        if let Some(refused) = refused.filter(|_| kind != RecordKind::Usage) {
            return self.add(&[section(kind), name], Err(refused.into()));
        }
        match kind {
            RecordKind::Credential => {
                let record =
                    Credential::try_from(value).map(|credential| Record::Credential { id: key, credential });
                self.add(&[section(kind), name], record);
            }
            RecordKind::Config => {
                let record = ConfigValue::new(value).map(|value| Record::Config { key, value });
                self.add(&[section(kind), name], record);
            }
            RecordKind::Usage => match value {
                Value::Object(fields) => {
                    for (field, count) in fields {
                        let record = counter(&key, &field, &count);
                        self.add(&[section(kind), name, &field], record);
                    }
                }
                _ => {
                    let error =
                        Error::new(ErrorKind::InvalidValue, "a usage record must be an object of counters");
                    self.add(&[section(kind), name], Err(error));
                }
            },
        }
    }
}

const fn section(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Credential => "credentials",
        RecordKind::Config => "configs",
        RecordKind::Usage => "usage",
    }
}

fn counter(key: &Key, field: &str, count: &Value) -> Result<Record> {
    let count = match count {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let invalid = || Error::new(ErrorKind::InvalidValue, "a count must be a 64-bit integer");
    Ok(Record::Usage { key: key.clone(), field: Key::new(field)?, count: count.ok_or_else(invalid)? })
}

struct Document<'c> {
    seen: &'c Cell<Option<Refused>>,
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        while let Some(name) = map.next_key::<String>()? {
            let kind = RecordKind::ALL.into_iter().find(|kind| section(*kind) == name);
            match (name.as_str(), kind) {
                ("backend", _) => found.backend = map.next_value()?,
                ("exported_at", _) => found.exported_at = map.next_value()?,
                (_, Some(kind)) => {
                    found.has_section = true;
                    let each = |name: String, value, refused| found.entry(kind, &name, value, refused);
                    map.next_value_seed(Members { seen: self.seen, each })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    found.remarks.push(Remark::not_understood(name, "an unknown section"));
                }
            }
        }
        Ok(found)
    }
}

/// Writes records as a document of gcli2api-go, in constant memory.
///
/// The program reads numbers as 64-bit floats and changes integers beyond 2^53. The document has no digest.
///
/// # Errors
///
/// As for [`write`](super::write()).
pub async fn write_go(
    header: &Header,
    records: impl Stream<Item = Result<Record>>,
    out: impl AsyncWrite,
) -> Result<()> {
    let (mut records, mut out) = (pin!(records), pin!(out));
    let created = rfc3339_seconds(created(header.created)?);
    let mut page = Vec::with_capacity(PAGE);
    page.extend_from_slice(b"{\n\"backend\": ");
    text(&header.source, &mut page);
    page.extend_from_slice(b",\n\"exported_at\": ");
    text(&created, &mut page);
    let mut position = Position { kind: None, last: None };
    while let Some(record) = records.next().await {
        position.add(&record?, &mut page)?;
        if page.len() >= PAGE {
            send(out.as_mut(), &page).await?;
            page.clear();
        }
    }
    position.move_to(None, &mut page);
    page.extend_from_slice(b"\n}\n");
    send(out.as_mut(), &page).await?;
    std::future::poll_fn(|context| out.as_mut().poll_flush(context)).await.map_err(failed)
}

/// The number of bytes per write.
const PAGE: usize = 256 * 1024;

fn text(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a text is JSON");
}

/// The writer's position in the document.
struct Position {
    kind: Option<RecordKind>,
    last: Option<RecordKey>,
}

impl Position {
    fn add(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<()> {
        let record_key = RecordKey::from(record);
        if self.last.as_ref().is_some_and(|last| *last >= record_key) {
            let error = Error::new(ErrorKind::InvalidValue, "the records to export are not sorted");
            return Err(error.with_key(record.key()));
        }
        let is_first = self.kind != Some(record.kind());
        if is_first {
            self.move_to(Some(record.kind()), out);
        }
        let is_same_record = !is_first
            && matches!((&self.last, &record_key), (Some(RecordKey::Usage(last, _)), RecordKey::Usage(key, _)) if last == key);
        if let Record::Usage { key, field, count } = record {
            if !is_same_record {
                out.extend_from_slice(if is_first { b"\n" } else { b"},\n" });
                text(key.as_str(), out);
                out.extend_from_slice(b": {");
            } else {
                out.extend_from_slice(b", ");
            }
            text(field.as_str(), out);
            out.extend_from_slice(format!(": {count}").as_bytes());
        } else {
            out.extend_from_slice(if is_first { b"\n" } else { b",\n" });
            text(record.key().as_str(), out);
            out.extend_from_slice(b": ");
            match record {
                Record::Credential { credential, .. } => {
                    out.extend_from_slice(credential.to_json().as_bytes())
                }
                Record::Config { value, .. } => out.extend_from_slice(value.to_json().as_bytes()),
                Record::Usage { .. } => {}
            }
        }
        self.last = Some(record_key);
        Ok(())
    }

    /// Ends the current section, and begins those up to `kind`, or to the end. Writes empty sections, too.
    fn move_to(&mut self, kind: Option<RecordKind>, out: &mut Vec<u8>) {
        match self.kind {
            Some(RecordKind::Usage) => out.extend_from_slice(b"}}"),
            Some(_) => out.push(b'}'),
            None => {}
        }
        let passed = |other: &RecordKind| Some(*other) > self.kind && kind.is_none_or(|kind| *other <= kind);
        for begun in RecordKind::ALL.into_iter().filter(passed) {
            out.extend_from_slice(b",\n");
            text(section(begun), out);
            out.extend_from_slice(b": {");
            if kind != Some(begun) {
                out.push(b'}');
            }
        }
        self.kind = kind.or(self.kind);
    }
}
