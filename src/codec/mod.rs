//! Encoding and decoding of stored data, and reading of URLs. The decoders are fuzzed.

// Public only for the fuzz targets.
#![allow(unreachable_pub)]

mod archive;
mod canonical;
mod json;
mod location;
mod options;
mod plan;
mod record;
mod record_key;

pub use archive::{ARCHIVE_VERSION, Contents, Decoder, Encoder, Header, MAGIC};
#[cfg(fuzzing)]
pub use canonical::canonical;
pub use canonical::is_same;
pub use json::{
    decode_config, decode_config_or_word, decode_credential, encode_config, encode_credential, whole,
};
pub(crate) use location::{
    Location, canonical_hosts, check_path, decode, host_and_port, invalid, is_this_machine,
};
#[cfg(feature = "file")]
pub(crate) use options::readable_size;
pub(crate) use options::{UrlOptions, from_paths, from_texts, options, options_from, readable};
pub(crate) use plan::corrupt as corrupt_plan;
pub use plan::{
    PlanChange, PlanRecord, decode_audit, decode_changes, decode_plan, encode_audit, encode_changes,
    encode_plan, times, to_micros, to_millis,
};
#[cfg(fuzzing)]
pub use record::decode_record;
pub use record::{MAX_LINE_BYTES, RecordHasher, encode_record};
pub use record_key::{RecordKey, decode_key};
