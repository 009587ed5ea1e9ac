//! Documents <-> compact JSON.

use crate::{ConfigValue, Credential, Error, ErrorKind, Result};

/// Compact JSON, which [`decode_credential`] reads back equal.
pub fn encode_credential(credential: &Credential) -> Vec<u8> {
    credential.to_json().into_bytes()
}

/// What [`encode_credential`] wrote; anything that is not a credential within the limits is Corrupt.
pub fn decode_credential(bytes: &[u8]) -> Result<Credential> {
    Credential::from_json(bytes).map_err(|error| corrupt("a stored credential", error))
}

/// Compact JSON, which [`decode_config`] reads back equal.
pub fn encode_config(value: &ConfigValue) -> Vec<u8> {
    value.to_json().into_bytes()
}

/// What [`encode_config`] wrote; anything that is not a config value within the limits is Corrupt.
pub fn decode_config(bytes: &[u8]) -> Result<ConfigValue> {
    ConfigValue::from_json(bytes).map_err(|error| corrupt("a stored config value", error))
}

/// The same of text that another program may have stored.
///
/// The Go module returned text that is not JSON as a string, so a bare word is one. What begins like JSON and is not is
/// damaged.
pub fn decode_loose_config(text: &[u8]) -> Result<ConfigValue> {
    decode_config(text).or_else(|error| match std::str::from_utf8(text) {
        Ok(word) if !word.trim_start().starts_with(['{', '[', '"']) && !is_json(word) => {
            ConfigValue::try_from(serde_json::Value::from(word))
                .map_err(|why| Error::new(ErrorKind::Corrupt, error.to_string()).with_source(why))
        }
        _ => Err(error),
    })
}

/// JSON that is refused for another reason.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cold]
fn corrupt(what: &str, why: Error) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what} can't be read")).with_source(why)
}
