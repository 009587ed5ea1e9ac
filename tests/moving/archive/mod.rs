//! Export files: a written file can be read, and any other file is refused.

mod go;

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    ConfigValue, Credential, Error, ErrorKind, Key, Memory, Record, Result, Storage,
    archive::{self, Contents, Header, MAX_LINE_BYTES, RecordHasher},
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, ReadBuf};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn credential(id: &str, fields: Value) -> Record {
    Record::Credential { id: key(id), credential: Credential::try_from(fields).unwrap() }
}

fn config(name: &str, value: Value) -> Record {
    Record::Config { key: key(name), value: ConfigValue::new(value).unwrap() }
}

fn usage(name: &str, field: &str, count: i64) -> Record {
    Record::Usage { key: key(name), field: key(field), count }
}

/// A few records of every kind, with values that are easily damaged.
fn few() -> Vec<Record> {
    vec![
        credential("../x", json!({})),
        credential("alice", json!({ "access_token": "ya29.a", "z": [1.0, -0.0, 1e300], "a": { "": null } })),
        config("\u{10ffff}\"\\", json!(null)),
        usage("sk-1", "errors", i64::MIN),
        usage("sk-1", "requests", 42),
        usage("sk-2", "requests", 0),
    ]
}

fn header() -> Header {
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_860_800);
    Header::new("file").with_created(created).with_snapshot(true)
}

async fn written(records: &[Record]) -> (Vec<u8>, Contents) {
    let mut file = Vec::new();
    let records = stream::iter(records.iter().cloned().map(Ok));
    let contents = archive::write(&header(), records, &mut file).await.unwrap();
    (file, contents)
}

/// The records of the file, and the error at the end, if any.
async fn read(file: &[u8]) -> (Vec<Record>, Option<Error>) {
    let mut records = Vec::new();
    let mut stream = pin!(archive::read(file));
    while let Some(record) = stream.next().await {
        match record {
            Ok(record) => records.push(record),
            Err(error) => {
                assert!(stream.next().await.is_none(), "the stream continues after an error");
                return (records, Some(error));
            }
        }
    }
    (records, None)
}

/// Asserts that `check` and `read` refuse a file, at this line. Returns the error's text.
#[track_caller]
fn assert_refused(file: &[u8], wanted: impl Fn(u64) -> bool) -> String {
    let (checked, (_, read)) =
        futures_util::FutureExt::now_or_never(async { (archive::check(file).await, read(file).await) })
            .expect("memory is always ready");
    let error = checked.expect_err("the file is accepted");
    let text = error.to_string();
    assert_eq!(Some(&text), read.map(|error| error.to_string()).as_ref());
    let line = text.strip_prefix("line ").and_then(|text| text.split([' ', ':']).next()?.parse().ok());
    assert!(line.is_some_and(wanted), "{text}");
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
    text
}

fn at(wanted: u64) -> impl Fn(u64) -> bool {
    move |line| line == wanted
}

fn lines(file: &[u8]) -> Vec<Vec<u8>> {
    file.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn a_whole_number_beyond_64_bits_is_refused() {
    let (file, _) = written(&[config("a", json!([7]))]).await;
    for large in ["18446744073709551616", "-9223372036854775809"] {
        let text = String::from_utf8(file.clone()).unwrap().replace("[7]", &format!("[{large}]"));
        assert_refused(text.as_bytes(), at(2));
    }
}

#[tokio::test]
async fn written_files_are_read() {
    for records in [Vec::new(), few(), few()[..1].to_vec(), few()[5..].to_vec()] {
        let (file, contents) = written(&records).await;
        let (found, end) = read(&file).await;
        assert_eq!((&found, end.is_none()), (&records, true));
        // `==` does not distinguish 0.0 from -0.0.
        assert_eq!(format!("{}", written(&found).await.1.digest), format!("{}", contents.digest));

        let checked = archive::check(&file[..]).await.unwrap();
        assert_eq!(checked, contents);
        assert_eq!(checked.header, header());
        assert_eq!(checked.bytes, file.len() as u64);
        assert_eq!(checked.credentials + checked.configs + checked.usage, records.len() as u64);
        let mut hasher = RecordHasher::default();
        records.iter().for_each(|record| hasher.update(record));
        assert_eq!(checked.digest, hasher.finish());
    }
}

/// Pins the format, because old files must stay readable.
#[tokio::test]
async fn the_format_does_not_change() {
    let (file, _) = written(&few()).await;
    let wanted = r#"{"format":"gateway-storage","version":1,"source":"file","created":"2026-01-31T12:00:00Z","snapshot":true}
{"key":"../x","kind":"credential","value":{}}
{"key":"alice","kind":"credential","value":{"a":{"":null},"access_token":"ya29.a","z":[1e0,-0e0,1e300]}}
{"key":"􏿿\"\\","kind":"config","value":null}
{"count":-9223372036854775808,"field":"errors","key":"sk-1","kind":"usage"}
{"count":42,"field":"requests","key":"sk-1","kind":"usage"}
{"count":0,"field":"requests","key":"sk-2","kind":"usage"}
"#;
    let text = String::from_utf8(file).unwrap();
    let (records, end) = text.split_at(wanted.len());
    assert_eq!(records, wanted);
    assert!(end.starts_with(r#"{"end":{"credentials":2,"configs":1,"usage":3,"header":""#), "{end}");
}

#[tokio::test]
async fn every_flipped_bit_is_detected() {
    let (file, _) = written(&few()).await;
    let mut line = 1;
    for (byte, original) in file.iter().enumerate() {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[byte] ^= 1 << bit;
            // If the line is still valid, the error is at its neighbour or at the end.
            assert_refused(&flipped, |found| found >= line && found <= 8);
        }
        line += u64::from(*original == b'\n');
    }
    assert_eq!(line, 9, "the file has eight lines");
}

#[tokio::test]
async fn every_truncated_file_is_refused() {
    let (file, _) = written(&few()).await;
    for length in 0..file.len() {
        let part = &file[..length];
        let whole_lines = part.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_refused(part, at(whole_lines + 1));
    }
}

#[tokio::test]
async fn moved_doubled_and_missing_lines_are_refused() {
    let lines = lines(&written(&few()).await.0);
    for left in 0..lines.len() {
        for right in left + 1..lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(left, right);
            assert_refused(&swapped.concat(), |_| true);
        }
        let mut doubled = lines.clone();
        doubled.insert(left, lines[left].clone());
        assert_refused(&doubled.concat(), at(left as u64 + 2));
        let mut without = lines.clone();
        without.remove(left);
        assert_refused(&without.concat(), |_| true);
    }
}

#[tokio::test]
async fn other_files_are_refused() {
    let (file, _) = written(&few()).await;
    let text = String::from_utf8(file.clone()).unwrap();
    assert_eq!(assert_refused(b"", at(1)), "line 1 is missing: the export is cut off");
    for foreign in ["\n", "{}\n", "hello\n", "[]\n", "null\n", "{\"format\":\"other\",\"version\":1}\n"] {
        assert_eq!(assert_refused(foreign.as_bytes(), at(1)), "line 1 is not the first line of an export");
    }
    let with_mark = [b"\xef\xbb\xbf", &file[..]].concat();
    assert_refused(&with_mark, at(1));
    assert_refused(text.replace('\n', "\r\n").as_bytes(), at(1));
    let mut mixed = lines(&file);
    let before_end = mixed[3].len() - 1;
    mixed[3].insert(before_end, b'\r');
    assert_refused(&mixed.concat(), at(4));
    for behind in ["\n", " ", "\0", "x", &text] {
        assert_refused(format!("{text}{behind}").as_bytes(), at(9));
    }
    assert_refused(text.replacen('\n', "\n\n", 1).as_bytes(), at(2));
    // Equal values in another form, as an editor may save them.
    assert_refused(text.replace("1e0", "1.0").as_bytes(), at(3));
    assert_refused(text.replace(":42", ": 42").as_bytes(), at(6));
}

#[tokio::test]
async fn a_later_version_is_reported() {
    let (file, _) = written(&few()).await;
    for version in ["2", "17", "4294967297"] {
        let later = format!("{{\"format\":\"gateway-storage\",\"version\":{version},\"more\":[]}}\nanything");
        let error = archive::check(later.as_bytes()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            format!("line 1: the export has format version {version}, and this build reads versions up to 1")
        );
    }
    let zeroth = String::from_utf8(file).unwrap().replace("\"version\":1", "\"version\":0");
    assert_refused(zeroth.as_bytes(), at(1));
}

/// Memory use is bounded.
#[tokio::test]
async fn an_endless_line_is_refused_early() {
    let first = lines(&written(&[]).await.0).remove(0);
    let read = Arc::new(AtomicUsize::new(0));
    let count = read.clone();
    let endless = std::iter::once(first).chain(std::iter::repeat_with(move || {
        count.fetch_add(1000, Ordering::Relaxed);
        b"x".repeat(1000)
    }));
    let error = archive::check(Pieces::new(endless.map(Ok))).await.unwrap_err();
    assert_eq!(error.to_string(), "line 2 is longer than any line of an export");
    assert!(read.load(Ordering::Relaxed) <= MAX_LINE_BYTES + 1000);
}

#[tokio::test]
async fn the_longest_records_fit() {
    let most = (gateway_storage::MAX_VALUE_BYTES - 1) / "1.5,".len();
    let records = [config("a", json!(vec![1.5; most])), config("b", json!("x".repeat((1 << 20) - 2)))];
    let (file, contents) = written(&records).await;
    assert_eq!(archive::check(&file[..]).await.unwrap(), contents);
    assert_eq!(read(&file).await.0, records);
}

/// Even one byte per read gives the same result.
#[tokio::test]
async fn the_size_of_reads_does_not_matter() {
    let (file, contents) = written(&few()).await;
    for size in [1, 2, 7, 100] {
        let pieces = Pieces::new(file.chunks(size).map(|piece| Ok(piece.to_vec())));
        assert_eq!(archive::check(pieces).await.unwrap(), contents);
    }
}

/// A reader that returns one piece per read.
struct Pieces<I>(I, Vec<u8>);

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Pieces<I> {
    fn new(pieces: I) -> Self {
        Self(pieces, Vec::new())
    }
}

impl<I: Iterator<Item = io::Result<Vec<u8>>> + Unpin> AsyncRead for Pieces<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.1.is_empty() {
            self.1 = self.0.next().unwrap_or(Ok(Vec::new()))?;
        }
        let length = self.1.len().min(room.remaining());
        room.put_slice(&self.1[..length]);
        self.1.drain(..length);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_error_of_the_input_is_returned() {
    let (file, _) = written(&few()).await;
    let input = [Ok(file[..50].to_vec()), Err(io::Error::other("disk"))];
    let error = archive::check(Pieces::new(input.into_iter())).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Unavailable, "the export can't be read")
    );
}

#[tokio::test]
async fn unsorted_records_are_not_written() {
    for unsorted in [
        [config("b", json!(1)), config("a", json!(1))],
        [config("a", json!(1)), config("a", json!(2))],
        [config("a", json!(1)), credential("a", json!({}))],
        [usage("a", "b", 1), usage("a", "a", 1)],
    ] {
        let mut file = Vec::new();
        let records = stream::iter(unsorted.iter().cloned().map(Ok));
        let error = archive::write(&header(), records, &mut file).await.unwrap_err();
        assert_eq!((error.kind(), error.key()), (ErrorKind::InvalidValue, Some(unsorted[1].key())));
    }
    let broken = stream::iter([Ok(config("a", json!(1))), Err(Error::new(ErrorKind::Busy, "busy"))]);
    let error = archive::write(&header(), broken, Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[tokio::test]
async fn errors_contain_no_data() {
    let (file, _) = written(&[credential("sk-secret", json!({ "token": "sk-secret" }))]).await;
    let text = String::from_utf8(file).unwrap();
    let broken = [
        text.replace("{\"token\"", "[\"token\""),
        text.replace("\"kind\"", "\"sk-secret\""),
        text.replace("\"credential\",", "\"sk-secret\","),
        text.replace("\"value\":{", "\"value\":sk-secret{"),
        text.replace("\"credentials\"", "\"sk-secret\""),
        text.replace("\"source\":\"file\"", "\"source\":sk-secret"),
    ];
    for broken in broken {
        assert_ne!(broken, text);
        let error = archive::check(broken.as_bytes()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sk-secret"), "{error:?}");
    }
}

#[tokio::test]
async fn an_export_is_imported_to_another_store() -> Result<()> {
    let (from, to) = (Storage::<Memory>::open("memory:").await?, Storage::<Memory>::open("memory:").await?);
    let report = from.import(stream::iter(few().into_iter().map(Ok))).await?;
    assert!(report.is_complete());
    assert!(from.exports_snapshot());
    let mut file = Vec::new();
    archive::write(&Header::new(from.label()), from.export(), &mut file).await?;
    assert!(to.import(archive::read(&file[..])).await?.is_complete());
    assert_eq!(to.export().try_collect::<Vec<_>>().await?, few());
    Ok(())
}
