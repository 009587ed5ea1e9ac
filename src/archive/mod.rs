//! Export files: [`write()`] a stream of records, [`check`] a file, [`read()`] it as a stream of records.
//!
//! ```
//! use futures_util::TryStreamExt;
//! use gateway_storage::{Memory, Storage, archive};
//! # use serde_json::json;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
//! # let storage = Storage::<Memory>::open("memory:").await?;
//! # let other = Storage::<Memory>::open("memory:").await?;
//! storage.set_config("retries", json!(3)).await?;
//! let header = archive::Header::new(storage.label()).with_snapshot(storage.exports_snapshot());
//! let mut file = Vec::new(); // or a `tokio::fs::File`
//! let written = archive::write(&header, storage.export(), &mut file).await?;
//!
//! let checked = archive::check(&file[..]).await?; // checks the whole file before anything is imported
//! assert_eq!((checked.configs, checked.digest), (1, written.digest));
//! other.import(archive::read(&file[..])).await?;
//! # Ok(()) }
//! ```
//!
//! # Format
//!
//! UTF-8 text with one JSON object per line, each line terminated by LF: a header, the records, an end.
//!
//! ```text
//! {"format":"gateway-storage","version":1,"source":"file","created":"2026-01-31T12:00:00Z","snapshot":true}
//! {"key":"alice","kind":"credential","value":{"access_token":"ya29"}}
//! {"key":"retries","kind":"config","value":3}
//! {"count":42,"field":"requests","key":"alice","kind":"usage"}
//! {"end":{"credentials":1,"configs":1,"usage":1,"header":"9f86..","records":"60e4.."}}
//! ```
//!
//! - Records are sorted and unique: credentials by id, config values by key, counters by key and field.
//! - A record is canonical JSON: no spaces, names sorted by their bytes, integers as digits, other numbers in
//!   scientific form (`1.5e0`), and in a string only `"`, `\` and control characters below U+0020 escaped.
//! - `records` is the SHA-256 of the lines of all records, as printed by `sed '1d;$d' FILE | sha256sum`. It
//!   is the same for two stores with the same records. `header` is the SHA-256 of the first line.
//! - Any other file is [`Corrupt`](crate::ErrorKind::Corrupt), and the error names the line: a file that is
//!   truncated, changed or reordered, has CRLF or a byte order mark, or continues after its end. The digests
//!   detect damage, not forgery: an attacker who can change the file can also compute new digests.
//! - A file of a later version is [`Unsupported`](crate::ErrorKind::Unsupported).
//! - A line has at most [`MAX_LINE_BYTES`].
//!
//! The file contains secrets. Create it so that only its owner can read it.

mod go;
mod read;
mod write;

pub use go::{GoDocument, MAX_GO_BYTES, is_go, read_go, write_go};
pub use read::{check, read};
pub use write::write;

pub use crate::codec::{ARCHIVE_VERSION, Contents, Header, MAX_LINE_BYTES, RecordHasher};
pub use crate::model::RecordDigest;

/// Whether a file that begins with these bytes claims to be an export, of any version.
#[must_use]
pub fn is_export(beginning: &[u8]) -> bool {
    beginning.starts_with(crate::codec::MAGIC)
}
