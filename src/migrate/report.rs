//! The report and the events of a copy.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, Key, Record, RecordKind, Result, model::time};

/// The maximum number of records that a report names, so that it stays small. All records are counted.
pub const MAX_NAMED: usize = 1000;

/// The results for records of one kind. `read` is the sum of `written`, `unchanged`, `skipped` and `failed`,
/// unless the copy was stopped: then some records that were read are in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tally {
    /// Read from the source, and selected by the filter.
    pub read: u64,
    /// Written, including replaced values. In a dry run, records that would be written.
    pub written: u64,
    /// Already in the target with the same value. 0 if the target is not read.
    pub unchanged: u64,
    /// In the target with another value, which was kept.
    pub skipped: u64,
    /// Not written: refused by the target, or in conflict.
    pub failed: u64,
    /// The size of the written records in bytes, as counted by [`Record::size`].
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

/// One [`Tally`] per kind of record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tallies {
    /// Credentials.
    pub credentials: Tally,
    /// Config values.
    pub configs: Tally,
    /// Counters.
    pub usage: Tally,
}

impl Tallies {
    /// The tally of one kind.
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

    /// The sum over all kinds.
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

/// A record that was not copied. Show its key only where the data may be shown: it is in the JSON, and
/// `Debug` does not print it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CopyFailure {
    /// The record's kind.
    pub kind: RecordKind,
    /// The record's key.
    pub key: Key,
    /// The field, if it is a counter.
    pub field: Option<Key>,
    /// The reason: [`Conflict`](crate::ErrorKind::Conflict) if the target has a different value.
    pub error: Error,
}

impl CopyFailure {
    pub(super) fn new(record: &Record, error: Error) -> Self {
        Self { kind: record.kind(), key: record.key().clone(), field: record.field().cloned(), error }
    }
}

/// The result of a copy. As JSON the tallies are among the other fields.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
#[must_use = "a copy returns Ok although it was stopped, or some records failed"]
pub struct CopyReport {
    /// The results per kind, of all runs if the copy was resumed. Records after the saved checkpoint count
    /// again.
    #[serde(flatten)]
    pub tallies: Tallies,
    /// The first [`MAX_NAMED`] records that failed, in all runs if the copy was resumed.
    pub failures: Vec<CopyFailure>,
    /// Why the copy stopped before the end of the source, if it did. The records before are written, and the
    /// copy can be resumed. The error's [outcome](Error::outcome) applies to records that were read and are
    /// not counted as written.
    pub stopped: Option<Error>,
    /// Whether the copy was resumed from a checkpoint.
    pub resumed: bool,
    /// Whether it was a dry run, which writes nothing.
    pub dry_run: bool,
    /// The duration of this run. As JSON `elapsed_seconds`.
    #[serde(rename = "elapsed_seconds", serialize_with = "time::as_seconds")]
    pub elapsed: Duration,
}

impl CopyReport {
    /// Whether the source was read to its end and no record failed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.tallies.total().failed == 0
    }

    /// Treats an incomplete copy as an error. Records that were written stay.
    ///
    /// # Errors
    ///
    /// The error that stopped the copy, or that of the first record that failed.
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
                    "some records failed before the copy was resumed; run it again without a checkpoint";
                Error::new(crate::ErrorKind::Conflict, message).with_retryable(false)
            }))
    }
}

/// An event of a running copy. As JSON `{ "progress": {..} }`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CopyEvent {
    /// The copy was resumed from a checkpoint with these results.
    Resumed(Tallies),
    /// The results so far.
    Progress(Tallies),
    /// The target could not take a chunk, which is retried after a pause.
    Retrying {
        /// The reason.
        error: Error,
        /// The pause. As JSON `after_ms`.
        #[serde(rename = "after_ms", serialize_with = "time::as_millis")]
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
