//! Records as lines of an export, and their digest.
//!
//! A line is JSON in the canonical form, followed by LF:
//!
//! ```text
//! {"key":"alice","kind":"credential","value":{"access_token":"ya29"}}
//! {"key":"retries","kind":"config","value":3}
//! {"count":42,"field":"requests","key":"alice","kind":"usage"}
//! ```

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::canonical::{canonical, canonical_fields, text};
use crate::{
    ConfigValue, Credential, Error, ErrorKind, Key, MAX_VALUE_BYTES, Record, RecordKind, model::RecordDigest,
};

/// The maximum length of a line, without LF. The canonical form of a number is at most twice as long as its
/// compact JSON, and that of a byte of a key has at most two bytes.
pub const MAX_LINE_BYTES: usize = 2 * MAX_VALUE_BYTES + 4 * Key::MAX_BYTES + 128;

/// Appends the record's line, including LF.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    out.push(b'{');
    if let Record::Usage { field, count, .. } = record {
        out.extend_from_slice(b"\"count\":");
        out.extend_from_slice(count.to_string().as_bytes());
        out.extend_from_slice(b",\"field\":");
        text(field.as_str(), out);
        out.push(b',');
    }
    out.extend_from_slice(b"\"key\":");
    text(record.key().as_str(), out);
    out.extend_from_slice(b",\"kind\":\"");
    out.extend_from_slice(record.kind().as_str().as_bytes());
    out.push(b'"');
    match record {
        Record::Credential { credential, .. } => {
            out.extend_from_slice(b",\"value\":");
            canonical_fields(credential.fields(), out);
        }
        Record::Config { value, .. } => {
            out.extend_from_slice(b",\"value\":");
            canonical(value, out);
        }
        Record::Usage { .. } => {}
    }
    out.extend_from_slice(b"}\n");
}

/// Decodes a line of [`encode_record`], without its LF. A line that is not exactly as [`encode_record`]
/// writes it is refused, so each record has one line. The error completes the sentence "line 5 ..", and
/// quotes nothing.
pub fn decode_record(line: &[u8]) -> Result<Record, &'static str> {
    let parsed: Line = serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => "is not a record",
        _ => "is not JSON",
    })?;
    let record = parsed.record(line.len())?;
    let mut rewritten = Vec::with_capacity(line.len() + 1);
    encode_record(&record, &mut rewritten);
    if rewritten.strip_suffix(b"\n") == Some(line) { Ok(record) } else { Err("is not in the canonical form") }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    count: Option<i64>,
    field: Option<Key>,
    key: Key,
    kind: RecordKind,
    #[serde(default, deserialize_with = "present")]
    value: Option<Value>,
}

/// Makes `null` a value, different from a field that is absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Line {
    fn record(self, bytes: usize) -> Result<Record, &'static str> {
        let limits = |error: Error| match error.kind() {
            ErrorKind::TooLarge => "has a value that exceeds the limits",
            _ => "has a number or a name that can't be stored",
        };
        match self {
            Self { kind: RecordKind::Credential, key: id, value: Some(Value::Object(fields)), .. } => {
                let credential = Credential::from_parsed(fields, bytes).map_err(limits)?;
                Ok(Record::Credential { id, credential })
            }
            Self { kind: RecordKind::Config, key, value: Some(value), .. } => {
                let value = ConfigValue::from_parsed(value, bytes).map_err(limits)?;
                Ok(Record::Config { key, value })
            }
            Self { kind: RecordKind::Usage, key, field: Some(field), count: Some(count), .. } => {
                Ok(Record::Usage { key, field, count })
            }
            _ => Err("is not a record"),
        }
    }
}

/// Computes the [`RecordDigest`] of records: the SHA-256 of their lines, in the order in which they are
/// added.
///
/// ```
/// # use gateway_storage::{Key, Record, archive::RecordHasher};
/// let mut hasher = RecordHasher::default();
/// let (key, field) = (Key::from_static("alice"), Key::from_static("requests"));
/// hasher.update(&Record::Usage { key, field, count: 42 });
/// println!("{}", hasher.finish());
/// ```
#[derive(Clone, Default)]
pub struct RecordHasher {
    hash: Sha256,
    line: Vec<u8>,
}

impl RecordHasher {
    /// Adds a record.
    pub fn update(&mut self, record: &Record) {
        self.line.clear();
        encode_record(record, &mut self.line);
        self.hash.update(&self.line);
    }

    /// Adds records by their lines.
    pub(crate) fn update_lines(&mut self, lines: &[u8]) {
        self.hash.update(lines);
    }

    /// The digest of all records that were added.
    #[must_use]
    pub fn finish(self) -> RecordDigest {
        RecordDigest(self.hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    fn config(value: Value) -> Record {
        Record::Config { key: key("k"), value: ConfigValue::new(value).unwrap() }
    }

    fn line(record: &Record) -> String {
        let mut out = Vec::new();
        encode_record(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn all() -> Vec<(Record, &'static str)> {
        let fields = json!({ "b": 1.0, "a": [null, "\u{1f}\n"] });
        vec![
            (
                Record::Credential { id: key("\"\\团"), credential: Credential::try_from(fields).unwrap() },
                r#"{"key":"\"\\团","kind":"credential","value":{"a":[null,"\u001f\n"],"b":1e0}}"#,
            ),
            (config(json!(null)), r#"{"key":"k","kind":"config","value":null}"#),
            (config(json!(-0.0)), r#"{"key":"k","kind":"config","value":-0e0}"#),
            (config(json!(u64::MAX)), r#"{"key":"k","kind":"config","value":18446744073709551615}"#),
            (
                Record::Usage { key: key("k"), field: key("f"), count: i64::MIN },
                r#"{"count":-9223372036854775808,"field":"f","key":"k","kind":"usage"}"#,
            ),
        ]
    }

    #[test]
    fn a_record_is_read_back_equal() {
        for (record, wanted) in all() {
            assert_eq!(line(&record), format!("{wanted}\n"));
            let read = decode_record(wanted.as_bytes()).unwrap();
            assert_eq!((read == record, line(&read)), (true, line(&record)));
        }
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"key":"k","kind":"config"}"#,
            r#"{"key":"k","kind":"credential","value":1}"#,
            r#"{"kind":"config","key":"k","value":1}"#,
            r#"{"key":"k","kind":"config","value":1.0}"#,
            r#"{"key":"k","kind":"config","value":{"a":1,"a":1}}"#,
            r#"{"key":"k","kind":"config","value":1 }"#,
            r#"{"key":"k","kind":"config","value":1,"more":1}"#,
            r#"{"key":"\u006b","kind":"config","value":1}"#,
            r#"{"key":"","kind":"config","value":1}"#,
            r#"{"count":1,"field":"f","key":"k","kind":"config","value":1}"#,
            r#"{"count":1,"field":"f","key":"k","kind":"usage","value":1}"#,
            r#"{"count":1.0,"field":"f","key":"k","kind":"usage"}"#,
            r#"{"count":01,"field":"f","key":"k","kind":"usage"}"#,
            r#"{"key":"k","kind":"plan","value":1}"#,
            "{\"key\":\"k\",\"kind\":\"config\",\"value\":1}\r",
        ] {
            assert!(decode_record(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let deep = format!(r#"{{"key":"k","kind":"config","value":{}{}}}"#, "[".repeat(65), "]".repeat(65));
        assert_eq!(decode_record(deep.as_bytes()).unwrap_err(), "has a value that exceeds the limits");
    }

    #[test]
    fn no_line_is_longer_than_the_maximum() {
        let short = [1.5, 0.1, -0.5, 1.0, 1e15, 1e16, 5e-324, -1.2345678901234567e-300, f64::MAX];
        for number in short {
            let (compact, canonical) = (json!(number).to_string(), line(&config(json!([number]))));
            assert!(canonical.len() - line(&config(json!([]))).len() <= 2 * compact.len(), "{compact}");
        }
        let most = (MAX_VALUE_BYTES - 1) / "1.5,".len();
        let record = Record::Config {
            key: key(&"\"".repeat(Key::MAX_BYTES)),
            value: ConfigValue::new(json!(vec![1.5; most])).unwrap(),
        };
        let line = line(&record);
        assert!(line.len() > MAX_VALUE_BYTES && line.len() <= MAX_LINE_BYTES, "{}", line.len());
        assert_eq!(decode_record(line.trim_end().as_bytes()), Ok(record));
    }

    #[test]
    fn the_digest_is_that_of_the_lines() {
        let (mut by_record, mut by_line) = (RecordHasher::default(), RecordHasher::default());
        for (record, line) in all() {
            by_record.update(&record);
            by_line.update_lines(format!("{line}\n").as_bytes());
        }
        assert_eq!(by_record.finish(), by_line.finish());
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(RecordHasher::default().finish().to_string(), nothing);
    }
}
