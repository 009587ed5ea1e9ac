//! [`verify`]: compares the records of two streams.

use std::time::{Duration, Instant};

use futures_core::Stream;
use gateway_storage_macros::Setters;
use serde::Serialize;

use super::{
    Filter, MAX_NAMED,
    join::{Lines, Pair, Sorted, next_of_both},
};
use crate::{
    Key, Record, RecordKind, Result,
    codec::RecordHasher,
    model::{RecordDigest, named, time},
};

/// The options of [`verify`]. The default compares everything.
#[derive(Clone, Debug, Default, Setters)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Which records are compared, on both sides.
    pub filter: Filter,
}

/// The result of comparing the records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compared {
    /// On both sides, equal in every bit.
    pub same: u64,
    /// On both sides, with another value.
    pub different: u64,
    /// Only in the source.
    pub missing: u64,
    /// Only in the target.
    pub extra: u64,
}

named! {
    /// How a record differs.
    DifferenceKind {
        /// It has another value in the target.
        Different = "different",
        /// Only the source has it.
        Missing = "missing",
        /// Only the target has it.
        Extra = "extra",
    }
}

/// A record that differs. Show its key only where the data may be shown: it is in the JSON, and `Debug` does
/// not print it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The record's kind.
    pub kind: RecordKind,
    /// The record's key.
    pub key: Key,
    /// The field, if it is a counter.
    pub field: Option<Key>,
    /// How it differs.
    pub difference: DifferenceKind,
}

/// The result of a comparison.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Credentials.
    pub credentials: Compared,
    /// Config values.
    pub configs: Compared,
    /// Counters.
    pub usage: Compared,
    /// The digest of the source's records that the filter allows.
    pub source_digest: RecordDigest,
    /// The digest of the target's records that the filter allows.
    pub target_digest: RecordDigest,
    /// The number of records in the source, if only a sample of them was compared.
    pub sampled_of: Option<u64>,
    /// The first [`MAX_NAMED`] records that differ.
    pub differences: Vec<Difference>,
    /// The duration of the comparison. As JSON `elapsed_seconds`.
    #[serde(rename = "elapsed_seconds", serialize_with = "time::as_seconds")]
    pub elapsed: Duration,
}

impl VerifyReport {
    pub(super) fn new() -> Self {
        let none = Compared::default();
        let empty = RecordHasher::default().finish();
        Self {
            credentials: none,
            configs: none,
            usage: none,
            source_digest: empty,
            target_digest: empty,
            sampled_of: None,
            differences: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// The result for one kind.
    #[must_use]
    pub const fn of(&self, kind: RecordKind) -> &Compared {
        match kind {
            RecordKind::Credential => &self.credentials,
            RecordKind::Config => &self.configs,
            RecordKind::Usage => &self.usage,
        }
    }

    /// The sum over all kinds.
    #[must_use]
    pub fn total(&self) -> Compared {
        let all = RecordKind::ALL.map(|kind| *self.of(kind));
        all.into_iter().fold(Compared::default(), |sum, one| Compared {
            same: sum.same + one.same,
            different: sum.different + one.different,
            missing: sum.missing + one.missing,
            extra: sum.extra + one.extra,
        })
    }

    /// Whether both sides have the same records, or for a [sample](Self::sampled_of) its records.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.has_source() && self.total().extra == 0
    }

    /// Whether the target has all compared records of the source, as after a copy. It may have others.
    #[must_use]
    pub fn has_source(&self) -> bool {
        let total = self.total();
        (total.different, total.missing) == (0, 0)
    }

    pub(super) fn add(&mut self, record: &Record, difference: Option<DifferenceKind>) {
        let compared = match record.kind() {
            RecordKind::Credential => &mut self.credentials,
            RecordKind::Config => &mut self.configs,
            RecordKind::Usage => &mut self.usage,
        };
        match difference {
            None => compared.same += 1,
            Some(DifferenceKind::Different) => compared.different += 1,
            Some(DifferenceKind::Missing) => compared.missing += 1,
            Some(DifferenceKind::Extra) => compared.extra += 1,
        }
        if let Some(difference) = difference
            && self.differences.len() < MAX_NAMED
        {
            let (kind, key, field) = (record.kind(), record.key().clone(), record.field().cloned());
            self.differences.push(Difference { kind, key, field, difference });
        }
    }
}

/// The number of records between two progress reports.
const REPORT_EVERY: u64 = 1000;

/// Compares two sorted streams, record by record, in constant memory. Values must be equal in every bit: 1
/// and 1.0 differ.
///
/// Writes to a store during the comparison can appear as differences, unless its export is a snapshot.
///
/// # Errors
///
/// An error of a stream, or [`InvalidValue`](crate::ErrorKind::InvalidValue) if one is not sorted.
pub async fn verify(
    source: impl Stream<Item = Result<Record>> + Send,
    target: impl Stream<Item = Result<Record>> + Send,
    options: &VerifyOptions,
    mut progress: impl FnMut(&VerifyReport) + Send,
) -> Result<VerifyReport> {
    let begun = Instant::now();
    let mut source = Sorted::new(source, "source", &options.filter, None);
    let mut target = Sorted::new(target, "target", &options.filter, None);
    let (mut report, mut lines, mut digests) = (VerifyReport::new(), Lines::default(), Digests::default());
    let mut count = 0;
    while let Some(pair) = next_of_both(&mut source, &mut target).await? {
        match pair {
            Pair { left: Some(left), right: Some(right) } => {
                let is_same = lines.are_same(&left, &right);
                match is_same {
                    true => digests.both(&lines.left),
                    false => digests.each(&lines.left, &lines.right),
                }
                report.add(&left, (!is_same).then_some(DifferenceKind::Different));
            }
            Pair { left: Some(left), right: None } => {
                digests.split().0.update(&left);
                report.add(&left, Some(DifferenceKind::Missing));
            }
            Pair { left: None, right: Some(right) } => {
                digests.split().1.update(&right);
                report.add(&right, Some(DifferenceKind::Extra));
            }
            Pair { left: None, right: None } => {}
        }
        count += 1;
        if count % REPORT_EVERY == 0 {
            report.elapsed = begun.elapsed();
            progress(&report);
        }
    }
    (report.source_digest, report.target_digest) = digests.finish();
    report.elapsed = begun.elapsed();
    progress(&report);
    Ok(report)
}

/// The digests of both sides. `right` is `None` while both sides are the same.
#[derive(Default)]
struct Digests {
    left: RecordHasher,
    right: Option<RecordHasher>,
}

impl Digests {
    fn both(&mut self, line: &[u8]) {
        self.left.update_lines(line);
        if let Some(right) = &mut self.right {
            right.update_lines(line);
        }
    }

    fn each(&mut self, left: &[u8], right: &[u8]) {
        let both = self.split();
        both.0.update_lines(left);
        both.1.update_lines(right);
    }

    fn split(&mut self) -> (&mut RecordHasher, &mut RecordHasher) {
        let right = self.right.get_or_insert_with(|| self.left.clone());
        (&mut self.left, right)
    }

    fn finish(self) -> (RecordDigest, RecordDigest) {
        let right = self.right.map(RecordHasher::finish);
        let left = self.left.finish();
        (left, right.unwrap_or(left))
    }
}
