//! The options of a copy.

use std::num::NonZeroU32;

use gateway_storage_macros::Setters;

use super::{Checkpoint, Filter, OnConflict};
use crate::{Error, ErrorKind, IMPORT_CHUNK, Result};

/// The options of [`copy`](super::copy()). The default copies everything, and stops at the first conflict.
#[derive(Clone, Debug, Setters)]
#[non_exhaustive]
pub struct CopyOptions {
    /// What to do if the target has a different value for a record.
    pub on_conflict: OnConflict,
    /// Which records are copied. All others are ignored.
    pub filter: Filter,
    /// Only report what would be done: nothing is written, a conflict is a failure in the report and does not
    /// stop the copy, and no checkpoint is used.
    pub dry_run: bool,
    /// The records per write: at least 1, [`IMPORT_CHUNK`] unless set. Fewer if the records are large.
    pub batch: usize,
    /// The number of concurrent writes: at least 1, 4 unless set.
    pub concurrency: usize,
    /// The maximum number of records per second. Unlimited unless set.
    pub rate: Option<NonZeroU32>,
    /// The checkpoint, from which a copy can be resumed after it was interrupted or killed.
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
    pub(super) fn check(&self) -> Result<()> {
        if self.batch == 0 || self.concurrency == 0 {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "batch and concurrency of a copy must be at least 1",
            ));
        }
        Ok(())
    }

    /// Whether the copy also reads the target.
    pub(super) fn compares(&self) -> bool {
        self.dry_run || self.on_conflict != OnConflict::Overwrite
    }
}
