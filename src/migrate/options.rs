//! How a copy is made.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Filter};
use crate::{Error, ErrorKind, IMPORT_CHUNK, Result};

/// What becomes of a record that the target has already, with another value. One with the same value is never a conflict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The copy stops there. What came before it is written, and stays.
    #[default]
    Fail,
    /// The target keeps its own.
    Skip,
    /// The source's takes its place. The target is not read, but for a look at what a copy that is resumed has written.
    Overwrite,
}

/// How [`copy`](super::copy()) works. The default copies everything, and stops at the first conflict.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyOptions {
    /// What becomes of a record that the target has with another value.
    pub on_conflict: OnConflict,
    /// Which records are copied. The others are as if they were not there.
    pub filter: Filter,
    /// Only finds out what would be done: nothing is written, a conflict is a failure in the report and stops nothing, and there
    /// is no checkpoint.
    pub dry_run: bool,
    /// How many records are written by one call: at least 1, [`IMPORT_CHUNK`] unless set. Fewer, where they are large.
    pub batch: usize,
    /// How many such calls are under way at once: at least 1, 4 unless set.
    pub concurrency: usize,
    /// The most records a second. Without it, as fast as both sides can.
    pub rate: Option<NonZeroU32>,
    /// Where the copy's place is kept, so that it can be resumed after it was killed.
    pub checkpoint: Option<Checkpoint>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            on_conflict: OnConflict::default(),
            filter: Filter::default(),
            dry_run: false,
            batch: IMPORT_CHUNK,
            concurrency: 4,
            rate: None,
            checkpoint: None,
        }
    }
}

impl CopyOptions {
    /// The same with another policy for conflicts.
    #[must_use]
    pub const fn with_on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.on_conflict = on_conflict;
        self
    }

    /// The same for only these records.
    #[must_use]
    pub fn with_filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// The same with a checkpoint.
    #[must_use]
    pub fn with_checkpoint(mut self, checkpoint: Checkpoint) -> Self {
        self.checkpoint = Some(checkpoint);
        self
    }

    /// The same as a dry run.
    #[must_use]
    pub const fn with_dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.batch == 0 || self.concurrency == 0 {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "batch and concurrency of a copy are at least 1",
            ));
        }
        Ok(())
    }

    /// Whether the target is read, too.
    pub(super) fn compares(&self) -> bool {
        self.dry_run || self.on_conflict != OnConflict::Overwrite
    }
}
