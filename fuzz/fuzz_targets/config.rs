//! Decodes config values, and encodes them again.
#![no_main]

use gateway_storage::{
    ConfigValue, ErrorKind,
    codec::{decode_config, decode_config_or_word, encode_config},
};
use gateway_storage_fuzz::{assert_silent, has_bigint, is_same, is_within_limits, value, with_secret};
use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(_) if has_bigint(bytes) => {
            let kind = ConfigValue::from_json(bytes).unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::InvalidValue | ErrorKind::TooLarge));
        }
        Ok(value) => check(value, ConfigValue::from_json(bytes)),
        Err(_) => assert!(ConfigValue::from_json(bytes).is_err()),
    }
    if let Ok(value) = value(&mut Unstructured::new(bytes)) {
        check(value.clone(), ConfigValue::new(value));
    }
    // JSON is decoded as JSON, and a bare word as a string; any other input is `Corrupt`.
    match (decode_config(bytes), decode_config_or_word(bytes)) {
        (Ok(value), read) => assert!(is_same(&read.unwrap(), &value)),
        (Err(_), Ok(word)) => assert_eq!(word.as_str().unwrap().as_bytes(), bytes),
        (Err(_), Err(error)) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
    if let Err(error) = ConfigValue::from_json(with_secret(bytes)) {
        assert_silent(&error);
        assert_silent(&decode_config(&with_secret(bytes)).unwrap_err());
    }
});

fn check(value: Value, config: gateway_storage::Result<ConfigValue>) {
    match config {
        Ok(config) => {
            assert!(is_within_limits(&value));
            assert!(is_same(&config, &value));
            let encoded = encode_config(&config);
            let decoded = decode_config(&encoded).unwrap();
            assert!(is_same(&decoded, &value));
            assert_eq!(encode_config(&decoded), encoded);
        }
        Err(error) => {
            assert!(!is_within_limits(&value));
            assert_eq!(error.kind(), ErrorKind::TooLarge);
        }
    }
}
