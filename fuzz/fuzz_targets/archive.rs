//! Decodes export files, their lines and the document of gcli2api-go: an accepted file has only one encoding.
#![no_main]

use gateway_storage::{
    ErrorKind, Result, archive,
    codec::{Contents, Decoder, Encoder, decode_record, encode_record},
};
use gateway_storage_fuzz::{assert_silent, with_secret};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut again = Vec::new();
    match read(bytes, &mut again) {
        Ok(contents) => {
            assert!(again == bytes, "two files encode the same export");
            assert_eq!(contents.bytes, bytes.len() as u64);
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
            assert!(error.to_string().starts_with("line "), "{error:?}");
        }
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(record) = decode_record(line) {
            let mut again = Vec::new();
            encode_record(&record, &mut again);
            assert!(again.strip_suffix(b"\n") == Some(line), "two lines encode the same record");
        }
    }
    if let Ok(document) = archive::read_go(bytes) {
        let keys = document.records.iter().map(|record| (record.kind(), record.key(), record.field()));
        assert!(keys.is_sorted());
    }
    let secret = with_secret(bytes);
    if let Err(error) = read(&secret, &mut Vec::new()) {
        assert_silent(&error);
    }
    if let Err(error) = archive::read_go(&secret[..]) {
        assert_silent(&error);
    }
});

/// Decodes a file, and encodes its records again.
fn read(bytes: &[u8], again: &mut Vec<u8>) -> Result<Contents> {
    let (mut decoder, mut records) = (Decoder::default(), Vec::new());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        records.extend(decoder.line(line)?);
    }
    let contents = decoder.finish()?;
    let mut encoder = Encoder::new(&contents.header, again)?;
    for record in &records {
        encoder.record(record, again)?;
    }
    assert!(encoder.finish(again) == contents);
    Ok(contents)
}
