//! Credentials and config values as compact JSON.

use crate::{ConfigValue, Credential, Error, ErrorKind, Result};

/// Encodes a credential as compact JSON, which [`decode_credential`] reads back equal.
pub fn encode_credential(credential: &Credential) -> Vec<u8> {
    credential.to_json().into_bytes()
}

/// Decodes a credential. Anything that is not a credential within the limits is `Corrupt`.
pub fn decode_credential(bytes: &[u8]) -> Result<Credential> {
    Credential::from_json(bytes).map_err(|error| corrupt("a stored credential", error))
}

/// Encodes a config value as compact JSON, which [`decode_config`] reads back equal.
pub fn encode_config(value: &ConfigValue) -> Vec<u8> {
    value.to_json().into_bytes()
}

/// Decodes a config value. Anything that is not a config value within the limits is `Corrupt`.
pub fn decode_config(bytes: &[u8]) -> Result<ConfigValue> {
    ConfigValue::from_json(bytes).map_err(|error| corrupt("a stored config value", error))
}

#[cold]
fn corrupt(what: &str, why: Error) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what} can't be read")).with_source(why)
}

/// Decodes a config value that this crate or the Go program gcli2api-go wrote.
///
/// Text that is not JSON is a string, because the Go program returned it so. Text that begins like JSON and
/// is not JSON is damaged.
pub fn decode_config_or_word(text: &[u8]) -> Result<ConfigValue> {
    decode_config(text).or_else(|error| match std::str::from_utf8(text) {
        Ok(word) if !word.trim_start().starts_with(['{', '[', '"']) && !is_json(word) => {
            ConfigValue::try_from(serde_json::Value::from(word))
                .map_err(|why| Error::new(ErrorKind::Corrupt, error.to_string()).with_source(why))
        }
        _ => Err(error),
    })
}

/// The integer that a float stands for: other languages write integers as floats. `None` for -0.0, and from
/// 2^53, where a float no longer identifies one integer.
pub fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let is_whole = number.fract() == 0.0 && number.abs() < EXACT && number.to_bits() != (-0.0_f64).to_bits();
    is_whole.then_some(number as i64)
}

/// Whether text that was refused is JSON, and so was refused for another reason.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(text: &[u8]) -> Option<Value> {
        decode_config_or_word(text).ok().map(|value| value.value().clone())
    }

    #[test]
    fn whole_floats_are_integers() {
        let numbers = [5.0, -3.0, 0.0, 9_007_199_254_740_991.0].map(whole);
        assert_eq!(numbers, [Some(5), Some(-3), Some(0), Some((1 << 53) - 1)]);
        for number in [-0.0, 0.5, 9_007_199_254_740_992.0, 1e16, f64::NAN, f64::INFINITY] {
            assert_eq!(whole(number), None, "{number}");
        }
    }

    #[test]
    fn whole_numbers_beyond_64_bits_are_corrupt() {
        for large in ["18446744073709551616", "-9223372036854775809"] {
            let (credential, config) = (format!("{{\"n\":{large}}}"), format!("[{large}]"));
            for error in [
                decode_credential(credential.as_bytes()).unwrap_err(),
                decode_config(config.as_bytes()).unwrap_err(),
                decode_config_or_word(large.as_bytes()).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(!format!("{error:?}").contains(large));
            }
        }
    }

    #[test]
    fn bare_words_are_strings_and_damaged_json_is_refused() {
        assert_eq!(value(b"127.0.0.1:8317"), Some(json!("127.0.0.1:8317")));
        assert_eq!(value(b""), Some(json!("")));
        assert_eq!(value(b"debug"), Some(json!("debug")));
        assert_eq!(value(b"007"), Some(json!("007")));
        assert_eq!(value(b"\"debug\""), Some(json!("debug")));
        assert_eq!(value(b"5"), Some(json!(5)));
        assert_eq!(value(b"true"), Some(json!(true)));
        assert_eq!(value(b"[1,2]"), Some(json!([1, 2])));
        for damaged in [&b"{\"a\":"[..], b"[1,", b"\"open", b" {", b"\xff"] {
            assert_eq!(value(damaged), None);
        }
    }
}
