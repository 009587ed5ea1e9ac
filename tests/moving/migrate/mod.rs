//! Moving records: the rules of a copy, every pair of backends, and copies that are killed.

mod checkpoints;
mod copies;
mod faults;
#[cfg(feature = "cli")]
mod kills;
mod pairs;
mod records;
#[cfg(any(feature = "cli", feature = "mongodb", feature = "postgres", feature = "redis"))]
use testkit::servers;
mod verifies;
