//! Stored data <-> bytes: what backends write and read. Everything here is fuzzed.

// Public to the fuzz targets only.
#![allow(unreachable_pub)]

mod json;
mod location;
mod record_key;

pub use json::{decode_config, decode_credential, encode_config, encode_credential};
pub(crate) use location::{
    Location, boolean, decode, duration, host_and_port, number, readable, unknown_option,
};
pub use record_key::RecordKey;
