//! Decodes credentials, and encodes them again.
#![no_main]

use gateway_storage::{
    Credential, ErrorKind,
    codec::{decode_credential, encode_credential},
};
use gateway_storage_fuzz::{assert_silent, has_bigint, is_same, is_within_limits, value, with_secret};
use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(_) if has_bigint(bytes) => {
            let kind = Credential::from_json(bytes).unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::InvalidValue | ErrorKind::TooLarge));
        }
        Ok(value) => check(value, Credential::from_json(bytes)),
        Err(_) => assert!(Credential::from_json(bytes).is_err()),
    }
    if let Ok(value) = value(&mut Unstructured::new(bytes)) {
        check(value.clone(), Credential::try_from(value));
    }
    if let Err(error) = Credential::from_json(with_secret(bytes)) {
        assert_silent(&error);
        assert_silent(&decode_credential(&with_secret(bytes)).unwrap_err());
    }
});

fn check(value: Value, credential: gateway_storage::Result<Credential>) {
    match credential {
        Ok(credential) => {
            assert!(is_within_limits(&value));
            assert!(is_same(&Value::Object(credential.fields().clone()), &value));
            let encoded = encode_credential(&credential);
            let decoded = decode_credential(&encoded).unwrap();
            assert!(is_same(&Value::Object(decoded.fields().clone()), &value));
            assert_eq!(encode_credential(&decoded), encoded);
        }
        Err(error) if value.is_object() => {
            assert!(!is_within_limits(&value));
            assert_eq!(error.kind(), ErrorKind::TooLarge);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidValue),
    }
}
