//! Decodes names of records, and encodes them again: the encoding is injective, reversible and ordered.
#![no_main]

use gateway_storage::{ErrorKind, Key, codec::RecordKey};
use gateway_storage_fuzz::{assert_silent, with_secret};
use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};

fuzz_target!(|bytes: &[u8]| {
    match RecordKey::decode(bytes) {
        Ok(record) => assert_eq!(record.encode(), bytes),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
    if let Err(error) = RecordKey::decode(&with_secret(bytes)) {
        assert_silent(&error);
    }
    let mut bytes = Unstructured::new(bytes);
    if let (Some(left), Some(right)) = (record(&mut bytes), record(&mut bytes)) {
        check(&left, &right);
        // The same text split elsewhere is a different pair: `a` + `bc` is not `ab` + `c`.
        if let RecordKey::Usage(key, field) = &left {
            let text = format!("{}{}", key.as_str(), field.as_str());
            for (at, _) in text.char_indices() {
                if let (Ok(key), Ok(field)) = (Key::new(&text[..at]), Key::new(&text[at..])) {
                    check(&left, &RecordKey::Usage(key, field));
                }
            }
        }
    }
});

fn check(left: &RecordKey, right: &RecordKey) {
    let (bytes, others) = (left.encode(), right.encode());
    assert!(RecordKey::decode(&bytes).unwrap() == *left);
    assert_eq!(bytes == others, left == right);
    assert_eq!(bytes.cmp(&others), left.cmp(right));
}

fn record(bytes: &mut Unstructured<'_>) -> Option<RecordKey> {
    let (kind, name, field): (u8, &str, &str) = bytes.arbitrary().ok()?;
    Some(match kind % 3 {
        0 => RecordKey::Credential(key(name)?),
        1 => RecordKey::Config(key(name)?),
        _ => RecordKey::Usage(key(name)?, key(field)?),
    })
}

fn key(name: &str) -> Option<Key> {
    let is_valid = (1..=255).contains(&name.len()) && !name.chars().any(char::is_control);
    match Key::new(name) {
        Ok(key) => {
            assert!(is_valid && key.as_str() == name);
            Some(key)
        }
        Err(error) => {
            assert!(!is_valid && error.kind() == ErrorKind::InvalidKey);
            None
        }
    }
}
