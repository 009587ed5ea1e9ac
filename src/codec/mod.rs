//! Stored data <-> bytes: what backends write and read. Everything here is fuzzed.

// Public to the fuzz targets only.
#![allow(unreachable_pub)]

mod json;
mod location;
mod record_key;

pub(crate) use json::{decode_config, decode_credential, encode_config, encode_credential};
pub(crate) use location::{Location, boolean, duration, readable, unknown_option};
pub(crate) use record_key::RecordKey;
