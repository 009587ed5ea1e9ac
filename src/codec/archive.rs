//! The format of an export file: a first line, one line per record, a last line.
//!
//! ```text
//! {"format":"gateway-storage","version":1,"source":"file","created":"2026-01-31T12:00:00Z","snapshot":true}
//! {"key":"alice","kind":"credential","value":{"access_token":"ya29"}}
//! {"count":42,"field":"requests","key":"alice","kind":"usage"}
//! {"end":{"credentials":1,"configs":0,"usage":1,"header":"9f86..","records":"60e4.."}}
//! ```
//!
//! Records are sorted by kind, key and field. `header` is the SHA-256 of the first line, `records` that of
//! the lines of all records; each line includes its LF. Each line has exactly one valid form, so a file with
//! any change is refused.

use std::time::SystemTime;

use gateway_storage_macros::Setters;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    RecordKey,
    record::{MAX_LINE_BYTES, RecordHasher, decode_record, encode_record},
};
use crate::{
    Error, ErrorKind, Record, RecordKind, Result,
    model::{
        RecordDigest, rfc3339_seconds,
        time::{self, created},
    },
};

/// The version of the format that this crate writes, and the newest that it reads.
pub const ARCHIVE_VERSION: u32 = 1;

/// The beginning of the first line, in every version of the format.
pub const MAGIC: &[u8] = b"{\"format\":\"gateway-storage\",";

const FORMAT: &str = "gateway-storage";

/// The description of an export, which precedes its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Setters)]
#[non_exhaustive]
pub struct Header {
    /// Where the records come from, for people: `"file"`. It must not be a secret.
    pub source: String,
    /// When the export began, in whole seconds. As JSON in RFC 3339.
    #[serde(serialize_with = "time::seconds")]
    pub created: SystemTime,
    /// Whether the records are a snapshot of their store: see
    /// [`exports_snapshot`](crate::Exportable::exports_snapshot).
    pub snapshot: bool,
}

impl Header {
    /// Creates a header with the current time that is not marked as a snapshot.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), created: SystemTime::now(), snapshot: false }
    }
}

/// A summary of an export that was read or written to its end. As JSON the header's fields are among the
/// others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Contents {
    /// The description of the export.
    #[serde(flatten)]
    pub header: Header,
    /// The number of credentials.
    pub credentials: u64,
    /// The number of config values.
    pub configs: u64,
    /// The number of counters.
    pub usage: u64,
    /// The number of usage records that the counters belong to.
    pub usage_records: u64,
    /// The digest of the records. Exports of the same records have the same digest.
    pub digest: RecordDigest,
    /// The size of the file in bytes.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstLine {
    format: String,
    version: u32,
    source: String,
    created: String,
    snapshot: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastLine {
    end: End,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    credentials: u64,
    configs: u64,
    usage: u64,
    header: RecordDigest,
    records: RecordDigest,
}

/// The state of an export of which some lines were read or written.
struct State {
    header: Header,
    header_digest: RecordDigest,
    last: Option<RecordKey>,
    counts: [u64; 3],
    usage_records: u64,
    records: RecordHasher,
}

impl State {
    fn new(header: Header, line: &[u8]) -> Self {
        let header_digest = RecordDigest(Sha256::digest(line).into());
        Self {
            header,
            header_digest,
            last: None,
            counts: [0; 3],
            usage_records: 0,
            records: RecordHasher::default(),
        }
    }

    /// Adds a record and its line.
    fn add(&mut self, record: &Record, line: &[u8]) -> Result<(), &'static str> {
        let name = RecordKey::from(record);
        match self.last.as_ref().map(|last| last.cmp(&name)) {
            Some(std::cmp::Ordering::Equal) => return Err("has the same key as the record before it"),
            Some(std::cmp::Ordering::Greater) => {
                return Err("is out of order: it must come before the record before it");
            }
            _ => {}
        }
        let begins_usage_record = match (&self.last, &name) {
            (Some(RecordKey::Usage(last, _)), RecordKey::Usage(key, _)) => last != key,
            (_, name) => matches!(name, RecordKey::Usage(..)),
        };
        self.usage_records += u64::from(begins_usage_record);
        self.last = Some(name);
        self.counts[match record.kind() {
            RecordKind::Credential => 0,
            RecordKind::Config => 1,
            RecordKind::Usage => 2,
        }] += 1;
        self.records.update_lines(line);
        Ok(())
    }

    fn end(self, bytes: u64) -> (Contents, End) {
        let Self {
            header, header_digest, counts: [credentials, configs, usage], usage_records, records, ..
        } = self;
        let digest = records.finish();
        let end = End { credentials, configs, usage, header: header_digest, records: digest };
        (Contents { header, credentials, configs, usage, usage_records, digest, bytes }, end)
    }
}

fn write_line(line: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, line).expect("strings and numbers can be serialized");
    out.push(b'\n');
}

/// Parses a line. `None` if it is not exactly as [`write_line`] writes it.
fn read_line<T: DeserializeOwned + Serialize>(line: &[u8]) -> Option<T> {
    let parsed: T = serde_json::from_slice(line).ok()?;
    let mut rewritten = Vec::with_capacity(line.len());
    write_line(&parsed, &mut rewritten);
    (rewritten == line).then_some(parsed)
}

/// Encodes an export line by line.
pub struct Encoder {
    state: State,
    bytes: u64,
}

impl Encoder {
    /// Writes the first line.
    pub fn new(header: &Header, out: &mut Vec<u8>) -> Result<Self> {
        let created = created(header.created)?;
        let first = FirstLine {
            format: FORMAT.to_owned(),
            version: ARCHIVE_VERSION,
            source: header.source.clone(),
            created: rfc3339_seconds(created),
            snapshot: header.snapshot,
        };
        let begin = out.len();
        write_line(&first, out);
        let line = &out[begin..];
        if line.len() > MAX_LINE_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "the source in an export's header is too long"));
        }
        let state = State::new(Header { created, ..header.clone() }, line);
        Ok(Self { bytes: line.len() as u64, state })
    }

    /// Writes a record. It must come after the previous record in the order of an export.
    pub fn record(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<()> {
        let begin = out.len();
        encode_record(record, out);
        let line = &out[begin..];
        self.bytes += line.len() as u64;
        self.state.add(record, line).map_err(|why| {
            Error::new(ErrorKind::InvalidValue, format!("a record to export {why}")).with_key(record.key())
        })
    }

    /// Writes the last line.
    pub fn finish(self, out: &mut Vec<u8>) -> Contents {
        let (mut contents, end) = self.state.end(self.bytes);
        let begin = out.len();
        write_line(&LastLine { end }, out);
        contents.bytes += (out.len() - begin) as u64;
        contents
    }
}

/// Decodes an export line by line, and verifies all of it.
#[derive(Default)]
pub struct Decoder {
    lines: u64,
    bytes: u64,
    state: Option<State>,
    contents: Option<Contents>,
}

impl Decoder {
    /// Takes a line with its LF, and returns its record if it has one. The decoder must not be used after an
    /// error.
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Record>> {
        self.lines += 1;
        self.bytes += line.len() as u64;
        let text = line.strip_suffix(b"\n").ok_or_else(|| self.corrupt("is cut off"))?;
        if text.len() > MAX_LINE_BYTES {
            return Err(self.too_long());
        }
        if self.contents.is_some() {
            return Err(self.corrupt("comes after the end of the export"));
        }
        let Some(state) = &mut self.state else {
            self.state = Some(State::new(self.first(line)?, line));
            return Ok(None);
        };
        if text.starts_with(b"{\"end\":") {
            let last: LastLine =
                read_line(line).ok_or_else(|| self.corrupt("is not a valid last line of an export"))?;
            let state = self.state.take().expect("the state is `Some` after the first line");
            let (contents, end) = state.end(self.bytes);
            self.contents = Some(contents);
            return self.compare(&last.end, &end).map(|()| None);
        }
        let record = decode_record(text).and_then(|record| state.add(&record, line).map(|()| record));
        record.map(Some).map_err(|why| self.corrupt(why))
    }

    fn first(&self, line: &[u8]) -> Result<Header> {
        #[derive(Deserialize)]
        struct Any {
            format: String,
            version: u64,
        }
        let foreign = || self.corrupt("is not the first line of an export");
        let any: Any = serde_json::from_slice(line).map_err(|_| foreign())?;
        if any.format != FORMAT {
            return Err(foreign());
        }
        if any.version > ARCHIVE_VERSION.into() {
            let message = format!(
                "line {}: the export has format version {}, and this build reads versions up to {ARCHIVE_VERSION}",
                self.lines, any.version
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let first: FirstLine = read_line(line)
            .filter(|first: &FirstLine| first.version == ARCHIVE_VERSION)
            .ok_or_else(foreign)?;
        let created = humantime::parse_rfc3339(&first.created).map_err(|_| foreign())?;
        if rfc3339_seconds(created) != first.created {
            return Err(foreign());
        }
        Ok(Header { source: first.source, created, snapshot: first.snapshot })
    }

    fn compare(&self, stated: &End, actual: &End) -> Result<()> {
        let counts = |end: &End| [end.credentials, end.configs, end.usage];
        if counts(stated) != counts(actual) {
            return Err(self.corrupt("has counts that do not match the number of records before it"));
        }
        if stated.records != actual.records {
            return Err(
                self.corrupt("has a digest that does not match the records before it: they were changed")
            );
        }
        if stated.header != actual.header {
            return Err(self.corrupt("has a digest that does not match line 1: it was changed"));
        }
        Ok(())
    }

    /// Ends the input. Returns an error unless the last line was read.
    pub fn finish(&mut self) -> Result<Contents> {
        self.contents.clone().ok_or_else(|| {
            self.lines += 1;
            self.corrupt("is missing: the export is cut off")
        })
    }

    /// The error for a line that has no LF within the maximum length.
    #[cold]
    pub fn endless(&mut self) -> Error {
        self.lines += 1;
        self.too_long()
    }

    #[cold]
    fn too_long(&self) -> Error {
        self.corrupt("is longer than any line of an export")
    }

    #[cold]
    fn corrupt(&self, why: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("line {} {why}", self.lines))
    }
}
