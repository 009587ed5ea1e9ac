//! Reads revisions and holders of leases, and shows them again.
#![no_main]

use gateway_storage::{ErrorKind, lease::Holder, revision::Revision};
use gateway_storage_fuzz::{assert_silent, with_secret};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Revision>() {
        Ok(revision) => {
            assert_eq!(revision.to_string(), text.to_ascii_lowercase());
            let json = serde_json::to_string(&revision).unwrap();
            assert_eq!(serde_json::from_str::<Revision>(&json).unwrap(), revision);
        }
        Err(error) => {
            assert!(text.len() != 40 || text.bytes().any(|digit| !digit.is_ascii_hexdigit()));
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
        }
    }
    match text.parse::<Holder>() {
        Ok(holder) => assert_eq!(holder.as_str(), text),
        Err(error) => {
            assert!(text.len() > 128 || text.is_empty() || text.bytes().any(|byte| !byte.is_ascii_graphic()));
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
        }
    }
    if let Ok(text) = String::from_utf8(with_secret(bytes)) {
        text.parse::<Revision>().map_or_else(|error| assert_silent(&error), drop);
        text.parse::<Holder>().map_or_else(|error| assert_silent(&error), drop);
    }
});
