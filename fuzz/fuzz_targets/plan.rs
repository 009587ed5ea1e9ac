//! Decodes plans, their records and their audit entries, and encodes them again.
#![no_main]

use gateway_storage::{
    ErrorKind,
    codec::{canonical, decode_audit, decode_plan, encode_audit, encode_plan},
    plan::Plan,
};
use gateway_storage_fuzz::{assert_silent, is_same, value, with_secret};
use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = value(&mut Unstructured::new(bytes)) {
        let mut form = Vec::new();
        canonical(&value, &mut form);
        let read: Value = serde_json::from_slice(&form).unwrap();
        assert!(is_same(&read, &value));
    }
    match Plan::from_json(bytes) {
        Ok(plan) => assert_eq!(Plan::new(plan.mutations()).unwrap().payload_hash(), plan.payload_hash()),
        Err(error) => assert!(matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::TooLarge)),
    }
    if let Err(error) = Plan::from_json(with_secret(bytes)) {
        assert_silent(&error);
    }
    match decode_plan(bytes) {
        Ok(record) => assert_eq!(decode_plan(&encode_plan(&record)).unwrap(), record),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
    match decode_audit("fuzz", bytes) {
        Ok(entry) => assert_eq!(decode_audit("fuzz", &encode_audit(&entry)).unwrap(), entry),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
});
