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

#[cold]
fn corrupt(what: &str, why: Error) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what} can't be read")).with_source(why)
}
