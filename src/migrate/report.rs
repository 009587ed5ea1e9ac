//! What a copy did, and what it tells while it does it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, Key, Record, RecordKind, Result};

/// How many records a report names at most: it stays small whatever goes wrong. All of them are counted.
pub const MAX_NAMED: usize = 1000;

/// What became of the records of one kind. `read` is the sum of `written`, `unchanged`, `skipped` and `failed`, unless the copy
/// was stopped: then some were read and are in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tally {
    /// Read from the source, and meant by the filter.
    pub read: u64,
    /// Written, in place of another one or not; in a dry run: would be.
    pub written: u64,
    /// In the target already, with the same value. None where the target is not read.
    pub unchanged: u64,
    /// In the target with another value, which it keeps.
    pub skipped: u64,
    /// Not written: refused by the target, or in conflict.
    pub failed: u64,
    /// The size of what was written, as [`Record::size`] counts it.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.written += other.written;
        self.unchanged += other.unchanged;
        self.skipped += other.skipped;
        self.failed += other.failed;
        self.bytes += other.bytes;
    }
}

/// A [`Tally`] of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tallies {
    /// Of credentials.
    pub credentials: Tally,
    /// Of config values.
    pub configs: Tally,
    /// Of counters.
    pub usage: Tally,
}

impl Tallies {
    /// That of one kind.
    #[must_use]
    pub const fn of(&self, kind: RecordKind) -> &Tally {
        match kind {
            RecordKind::Credential => &self.credentials,
            RecordKind::Config => &self.configs,
            RecordKind::Usage => &self.usage,
        }
    }

    pub(super) const fn of_mut(&mut self, kind: RecordKind) -> &mut Tally {
        match kind {
            RecordKind::Credential => &mut self.credentials,
            RecordKind::Config => &mut self.configs,
            RecordKind::Usage => &mut self.usage,
        }
    }

    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut total = self.credentials;
        total.add(&self.configs);
        total.add(&self.usage);
        total
    }

    pub(super) fn add(&mut self, other: &Self) {
        for kind in RecordKind::ALL {
            self.of_mut(kind).add(other.of(kind));
        }
    }
}

/// One record that was not copied. Its key may be shown to whoever may see the data; `Debug` does not print it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyFailure {
    /// Its kind.
    pub kind: RecordKind,
    /// Its key.
    pub key: Key,
    /// Its field, if it is a counter.
    pub field: Option<Key>,
    /// Why: [`Conflict`](crate::ErrorKind::Conflict) if the target has it with another value.
    pub error: Error,
}

impl CopyFailure {
    pub(super) fn new(record: &Record, error: Error) -> Self {
        Self { kind: record.kind(), key: record.key().clone(), field: record.field().cloned(), error }
    }
}

/// What a copy did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
#[must_use = "a copy returns Ok although it was stopped, or some records failed"]
pub struct CopyReport {
    /// What became of the records, by kind; of a resumed copy since its very beginning. What was written after the checkpoint was
    /// last saved is done and counted again.
    pub tallies: Tallies,
    /// The first [`MAX_NAMED`] records that failed; of a resumed copy since its very beginning.
    pub failures: Vec<CopyFailure>,
    /// Why the copy stopped before the source's end, if it did: what came before is written, and it can be resumed. Its
    /// [outcome](Error::outcome) is that of the records that were read and are not counted as written.
    pub stopped: Option<Error>,
    /// Whether it went on from a checkpoint.
    pub resumed: bool,
    /// Whether nothing was written, since it was a dry run.
    pub dry_run: bool,
    /// How long this run took.
    pub elapsed: Duration,
}

impl CopyReport {
    /// Whether the source was read to its end and no record failed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.tallies.total().failed == 0
    }

    /// The report, or an error for callers to whom a part is a failure: what stopped the copy, or the first record that failed.
    ///
    /// # Errors
    ///
    /// As said. What was written stays.
    pub fn complete(self) -> Result<Self> {
        if self.is_complete() {
            return Ok(self);
        }
        let failed = self.failures.into_iter().next();
        Err(self
            .stopped
            .or_else(|| failed.map(|failure| failure.error.with_key(&failure.key)))
            .unwrap_or_else(|| {
                let message =
                    "some records failed before the copy was resumed; repeat it without a checkpoint";
                Error::new(crate::ErrorKind::Conflict, message).with_retryable(false)
            }))
    }
}

/// What a copy tells while it is under way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CopyEvent {
    /// It went on from a checkpoint, where this was done already.
    Resumed(Tallies),
    /// So much is done.
    Progress(Tallies),
    /// The target could not take a chunk, which is tried again after a pause.
    Retrying {
        /// Why.
        error: Error,
        /// The pause.
        after: Duration,
    },
    /// A record was not copied.
    Failed(CopyFailure),
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, written, unchanged, skipped, failed, .. } = self;
        write!(f, "read {read}, written {written}, unchanged {unchanged}, skipped {skipped}, failed {failed}")
    }
}
