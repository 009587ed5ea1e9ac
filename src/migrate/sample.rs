//! [`verify_sample`]: compares a random sample of a source with a store.

use std::{pin::pin, time::Instant};

use futures_core::Stream;
use futures_util::StreamExt;

use super::{DifferenceKind, VerifyOptions, VerifyReport, join::Lines};
use crate::{
    ConfigStore, CredentialStore, Error, ErrorKind, Key, OptionalExt, Record, Result, Storage, UsageRecord,
    UsageStore,
    codec::{RecordHasher, RecordKey},
};

/// The number of credentials per read.
const PAGE: usize = 100;

/// Compares `count` records of a source, chosen at random with equal probability, with the store's records
/// under their keys. The source is read to its end. Only these keys are read from the store, so records that
/// only the store has are not found.
///
/// The sample is held in memory. The digests are those of the sample and of the records found for it.
///
/// # Errors
///
/// An error of the source or the store, or [`InvalidValue`](ErrorKind::InvalidValue) if `count` is 0.
pub async fn verify_sample<B: CredentialStore + ConfigStore + UsageStore>(
    source: impl Stream<Item = Result<Record>> + Send,
    target: &Storage<B>,
    count: usize,
    options: &VerifyOptions,
) -> Result<VerifyReport> {
    if count == 0 {
        return Err(Error::new(ErrorKind::InvalidValue, "the sample must have at least one record"));
    }
    let begun = Instant::now();
    let mut sample: Vec<Record> = Vec::new();
    let (mut source, mut seen) = (pin!(source), 0_usize);
    while let Some(record) = source.next().await.transpose()? {
        tokio::task::consume_budget().await;
        if !options.filter.allows(&record) {
            continue;
        }
        // Reservoir sampling: each record seen so far is in the sample with the same probability.
        if sample.len() < count {
            sample.push(record);
        } else if let Some(chosen) = sample.get_mut(fastrand::usize(0..=seen)) {
            *chosen = record;
        }
        seen += 1;
    }
    sample.sort_by_cached_key(|record: &Record| RecordKey::from(record));

    let (mut report, mut lines) = (VerifyReport::new(), Lines::default());
    report.sampled_of = Some(seen as u64);
    // The last usage record that was read: its counters are adjacent in the sorted sample.
    let mut counters: Option<(Key, Option<UsageRecord>)> = None;
    let (mut left, mut right) = (RecordHasher::default(), RecordHasher::default());
    for page in sample.chunks(PAGE) {
        let ids = page.iter().filter_map(|record| match record {
            Record::Credential { id, .. } => Some(id.clone()),
            Record::Config { .. } | Record::Usage { .. } => None,
        });
        let ids: Vec<Key> = ids.collect();
        let mut credentials = target.get_credentials(&ids).await?;
        let missing = |error: &Error| error.kind() == ErrorKind::NotFound;
        if let Some(failure) = credentials.failures.into_iter().find(|failure| !missing(&failure.error)) {
            return Err(failure.error.with_key(&failure.key));
        }
        for record in page {
            let found = match record {
                Record::Credential { id, .. } => credentials
                    .values
                    .remove(id)
                    .map(|credential| Record::Credential { id: id.clone(), credential }),
                Record::Config { key, .. } => {
                    let value = target.get_config(key).await.optional()?;
                    value.map(|value| Record::Config { key: key.clone(), value })
                }
                Record::Usage { key, field, .. } => {
                    if counters.as_ref().is_none_or(|(of, _)| of != key) {
                        counters = Some((key.clone(), target.get_usage(key).await.optional()?));
                    }
                    let found = counters.as_ref().and_then(|(_, found)| found.as_ref());
                    let count = found.and_then(|counters| counters.get(field.as_str()));
                    count.map(|count| Record::Usage { key: key.clone(), field: field.clone(), count })
                }
            };
            left.update(record);
            let difference = match &found {
                None => Some(DifferenceKind::Missing),
                Some(found) => {
                    right.update(found);
                    (!lines.are_same(record, found)).then_some(DifferenceKind::Different)
                }
            };
            report.add(record, difference);
        }
    }
    (report.source_digest, report.target_digest) = (left.finish(), right.finish());
    report.elapsed = begun.elapsed();
    Ok(report)
}
