//! [`OnConflict`]: the policy for conflicts.

use serde::{Deserialize, Serialize};

/// What to do if the target has a different value for a record. The same value is never a conflict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnConflict {
    /// Stop the copy. Records that were written before stay.
    #[default]
    Fail,
    /// Keep the target's value.
    Skip,
    /// Replace it with the source's value. The target is not read, except to check the checkpoint of a
    /// resumed copy.
    Overwrite,
}
