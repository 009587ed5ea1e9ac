//! An export file: its first line, its records, its last line.
//!
//! ```text
//! {"format":"gateway-storage","version":1,"source":"file","created":"2026-01-31T12:00:00Z","snapshot":true}
//! {"key":"alice","kind":"credential","value":{"access_token":"ya29"}}
//! {"count":42,"field":"requests","key":"alice","kind":"usage"}
//! {"end":{"credentials":1,"configs":0,"usage":1,"header":"9f86..","records":"60e4.."}}
//! ```
//!
//! Records are sorted by kind, key and field. `header` is the SHA-256 of the first line, `records` that of the lines of all
//! records, each with its LF. There is one way to write each line, so a file that was changed in any place is refused.

use std::time::SystemTime;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    RecordKey,
    record::{MAX_LINE_BYTES, RecordHasher, decode_record, encode_record},
    time::{created, rfc3339_seconds},
};
use crate::{Error, ErrorKind, Record, RecordDigest, RecordKind, Result};

/// The version of the format that this crate writes, and the newest that it reads.
pub const ARCHIVE_VERSION: u32 = 1;

/// How a first line begins, in every version.
pub const MAGIC: &[u8] = b"{\"format\":\"gateway-storage\",";

const FORMAT: &str = "gateway-storage";

/// What an export says of itself before its records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// Where the records come from, for people: `"file"`. No secret.
    pub source: String,
    /// When the export began, in whole seconds.
    pub created: SystemTime,
    /// Whether the records are one state of their store, although writes went on:
    /// [`exports_snapshot`](crate::Exportable::exports_snapshot).
    pub snapshot: bool,
}

impl Header {
    /// Of now, and not known to be a snapshot.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), created: SystemTime::now(), snapshot: false }
    }

    /// Whether it is a snapshot.
    #[must_use]
    pub fn with_snapshot(self, snapshot: bool) -> Self {
        Self { snapshot, ..self }
    }

    /// Of then.
    #[must_use]
    pub fn with_created(self, created: SystemTime) -> Self {
        Self { created, ..self }
    }
}

/// What a whole export holds: it was read, or written, to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contents {
    /// What it says of itself.
    pub header: Header,
    /// How many credentials there are.
    pub credentials: u64,
    /// How many config values.
    pub configs: u64,
    /// How many counters.
    pub usage: u64,
    /// How many usage records they are in.
    pub usage_records: u64,
    /// The digest of its records: exports that hold the same have the same.
    pub digest: RecordDigest,
    /// The size of the file.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    format: String,
    version: u32,
    source: String,
    created: String,
    snapshot: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
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

/// What is known of an export after some of its lines.
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

    /// Adds a record by its line.
    fn add(&mut self, record: &Record, line: &[u8]) -> Result<(), &'static str> {
        let place = RecordKey::from(record);
        match self.last.as_ref().map(|last| last.cmp(&place)) {
            Some(std::cmp::Ordering::Equal) => return Err("is the same record as the one before"),
            Some(std::cmp::Ordering::Greater) => {
                return Err("belongs before the record before: the order is not kept");
            }
            _ => {}
        }
        let is_next = match (&self.last, &place) {
            (Some(RecordKey::Usage(last, _)), RecordKey::Usage(key, _)) => last != key,
            (_, place) => matches!(place, RecordKey::Usage(..)),
        };
        self.usage_records += u64::from(is_next);
        self.last = Some(place);
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
    serde_json::to_writer(&mut *out, line).expect("a line of texts and numbers is JSON");
    out.push(b'\n');
}

/// Reads a line that has one way to be written.
fn read_line<T: DeserializeOwned + Serialize>(line: &[u8]) -> Option<T> {
    let parsed: T = serde_json::from_slice(line).ok()?;
    let mut again = Vec::with_capacity(line.len());
    write_line(&parsed, &mut again);
    (again == line).then_some(parsed)
}

/// Writes an export, line by line.
pub struct Encoder {
    state: State,
    bytes: u64,
}

impl Encoder {
    /// Begins with the first line.
    pub fn new(header: &Header, out: &mut Vec<u8>) -> Result<Self> {
        let created = created(header.created)?;
        let first = First {
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
            return Err(Error::new(ErrorKind::TooLarge, "the name of an export's source is too long"));
        }
        let state = State::new(Header { created, ..header.clone() }, line);
        Ok(Self { bytes: line.len() as u64, state })
    }

    /// Adds a record. One that is not behind the last one is refused.
    pub fn record(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<()> {
        let begin = out.len();
        encode_record(record, out);
        let line = &out[begin..];
        self.bytes += line.len() as u64;
        self.state.add(record, line).map_err(|why| {
            Error::new(ErrorKind::InvalidValue, format!("a record to export {why}")).with_key(record.key())
        })
    }

    /// Ends with the last line.
    pub fn finish(self, out: &mut Vec<u8>) -> Contents {
        let (mut contents, end) = self.state.end(self.bytes);
        let begin = out.len();
        write_line(&Last { end }, out);
        contents.bytes += (out.len() - begin) as u64;
        contents
    }
}

/// Reads an export, line by line, and believes nothing.
#[derive(Default)]
pub struct Decoder {
    lines: u64,
    bytes: u64,
    state: Option<State>,
    contents: Option<Contents>,
}

impl Decoder {
    /// Takes a line with its LF, and gives its record if it holds one. Ends at the first error.
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Record>> {
        self.lines += 1;
        self.bytes += line.len() as u64;
        let text = line.strip_suffix(b"\n").ok_or_else(|| self.wrong("is cut off"))?;
        if text.len() > MAX_LINE_BYTES {
            return Err(self.too_long());
        }
        if self.contents.is_some() {
            return Err(self.wrong("stands behind the end of the export"));
        }
        let Some(state) = &mut self.state else {
            self.state = Some(State::new(self.first(line)?, line));
            return Ok(None);
        };
        if text.starts_with(b"{\"end\":") {
            let last: Last =
                read_line(line).ok_or_else(|| self.wrong("is not a last line as an export has it"))?;
            let state = self.state.take().expect("it is there");
            let (contents, end) = state.end(self.bytes);
            self.contents = Some(contents);
            return self.compare(&last.end, &end).map(|()| None);
        }
        let record = decode_record(text).and_then(|record| state.add(&record, line).map(|()| record));
        record.map(Some).map_err(|why| self.wrong(why))
    }

    fn first(&self, line: &[u8]) -> Result<Header> {
        #[derive(Deserialize)]
        struct Any {
            format: String,
            version: u64,
        }
        let foreign = || self.wrong("is not the first line of an export");
        let any: Any = serde_json::from_slice(line).map_err(|_| foreign())?;
        if any.format != FORMAT {
            return Err(foreign());
        }
        if any.version > ARCHIVE_VERSION.into() {
            let message = format!(
                "line {}: the export has the format version {}, and this build reads {ARCHIVE_VERSION} at most",
                self.lines, any.version
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let first: First =
            read_line(line).filter(|first: &First| first.version == ARCHIVE_VERSION).ok_or_else(foreign)?;
        let created = humantime::parse_rfc3339(&first.created).map_err(|_| foreign())?;
        if rfc3339_seconds(created) != first.created {
            return Err(foreign());
        }
        Ok(Header { source: first.source, created, snapshot: first.snapshot })
    }

    fn compare(&self, said: &End, found: &End) -> Result<()> {
        let counts = |end: &End| [end.credentials, end.configs, end.usage];
        if counts(said) != counts(found) {
            return Err(self.wrong(
                "says that there are other records than those before it: some are missing, or too many",
            ));
        }
        if said.records != found.records {
            return Err(self.wrong(
                "says that the records before it were others when they were written: their digest differs",
            ));
        }
        if said.header != found.header {
            return Err(self.wrong("says that line 1 was another when it was written: its digest differs"));
        }
        Ok(())
    }

    /// Nothing comes any more: that is an error, unless the end was there.
    pub fn finish(&mut self) -> Result<Contents> {
        self.contents.clone().ok_or_else(|| {
            self.lines += 1;
            self.wrong("is missing: the export is cut off")
        })
    }

    /// The line that is being read has no end.
    #[cold]
    pub fn endless(&mut self) -> Error {
        self.lines += 1;
        self.too_long()
    }

    #[cold]
    fn too_long(&self) -> Error {
        self.wrong("is longer than any line of an export")
    }

    #[cold]
    fn wrong(&self, why: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("line {} {why}", self.lines))
    }
}
