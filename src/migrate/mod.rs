//! Moves records: [`copy`] from any source to any store, [`verify`] that two have the same records,
//! [`verify_sample`] with a random sample.
//!
//! A **source** is a stream of records, sorted as [`Exportable::export`](crate::Exportable::export) says: an
//! export of a store, or any other reader. A **target** is a [`Storage`](crate::Storage) whose backend
//! imports records. Memory use is bounded by [`batch`](CopyOptions::batch) and
//! [`concurrency`](CopyOptions::concurrency), whatever the number of records.
//!
//! ```
//! use gateway_storage::{
//!     Memory, Storage,
//!     migrate::{CopyOptions, VerifyOptions, copy, verify},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
//! # let old = Storage::<Memory>::open("memory:").await?;
//! # let new = Storage::<Memory>::open("memory:").await?;
//! # old.set_config("retries", serde_json::json!(3)).await?;
//! let report = copy(old.export(), &new, &CopyOptions::default(), |_| ()).await?.complete()?;
//! assert_eq!(report.tallies.configs.written, 1);
//!
//! let report = verify(old.export(), new.export(), &VerifyOptions::default(), |_| ()).await?;
//! assert!(report.is_same());
//! # Ok(()) }
//! ```
//!
//! Both sides are sorted, so reading each once, side by side, is enough to compare them. Events are passed to
//! a function; send them to a channel to get a stream.

mod checkpoint;
mod chunk;
mod copy;
mod filter;
mod join;
mod on_conflict;
mod options;
mod report;
mod sample;
mod verify;

pub use checkpoint::Checkpoint;
pub use copy::copy;
pub use filter::{Filter, Glob};
pub use on_conflict::OnConflict;
pub use options::CopyOptions;
pub use report::{CopyEvent, CopyFailure, CopyReport, MAX_NAMED, Tallies, Tally};
pub use sample::verify_sample;
pub use verify::{Compared, Difference, DifferenceKind, VerifyOptions, VerifyReport, verify};
