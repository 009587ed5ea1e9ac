//! A chunk of records, written by one call: read from the source, compared with the target, and written.

use std::{mem, num::NonZeroU32, time::Duration};

use futures_core::Stream;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    CopyEvent, CopyFailure, CopyOptions, OnConflict, Tallies,
    join::{Lines, Sorted, match_of},
};
use crate::{
    Error, ErrorKind, Exportable, Outcome, Record, RecordKind, Result, Storage, codec::RecordKey, storage,
};

/// A chunk ends after reading this many times its size, so that progress is reported if little needs writing.
const MAX_READS: usize = 10;

/// Attempts to write a chunk, with pauses of 16 s in total. Electing a new primary takes about 10 s.
const ATTEMPTS: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Consecutive records of the source, and their results.
#[derive(Default)]
pub(super) struct Chunk {
    /// The records to write.
    writes: storage::Chunk,
    pub(super) tallies: Tallies,
    pub(super) failures: Vec<CopyFailure>,
    /// The last record that was read, if all records up to it are processed.
    pub(super) through: Option<RecordKey>,
    /// The last record that the target has now.
    pub(super) held: Option<RecordKey>,
    /// Why this is the last chunk, unless the source has ended.
    pub(super) stopped: Option<Error>,
}

/// Splits a source into chunks.
pub(super) struct Chunks<'o, S, T> {
    pub(super) source: Sorted<'o, S>,
    /// The target's records, if it is read.
    pub(super) target: Option<Sorted<'o, T>>,
    options: &'o CopyOptions,
    /// The kinds of records that the target stores.
    imports: Vec<RecordKind>,
    lines: Lines,
    rate: Option<RateLimit>,
    has_ended: bool,
}

impl<'o, S, T> Chunks<'o, S, T>
where
    S: Stream<Item = Result<Record>>,
    T: Stream<Item = Result<Record>>,
{
    pub(super) fn new(
        source: Sorted<'o, S>,
        target: Option<Sorted<'o, T>>,
        options: &'o CopyOptions,
        imports: Vec<RecordKind>,
    ) -> Self {
        let rate = options.rate.map(RateLimit::new);
        Self { source, target, options, imports, lines: Lines::default(), rate, has_ended: false }
    }

    pub(super) async fn next(&mut self) -> Option<Chunk> {
        if self.has_ended {
            return None;
        }
        let mut chunk = Chunk::default();
        match self.fill(&mut chunk).await {
            Ok(more) => self.has_ended = !more,
            Err(error) => {
                self.has_ended = true;
                chunk.stopped = Some(error);
            }
        }
        Some(chunk)
    }

    /// Returns whether the source may have more records.
    async fn fill(&mut self, chunk: &mut Chunk) -> Result<bool> {
        let most = self.rate.as_ref().map_or(self.options.batch, |rate| rate.burst.min(self.options.batch));
        let mut read = 0;
        while !chunk.writes.is_full(most) && read < MAX_READS.saturating_mul(most) {
            let Some(key) = self.source.peek().await? else { return Ok(false) };
            let found = match &mut self.target {
                Some(target) => match_of(key, target).await?,
                None => None,
            };
            if let Some(rate) = &mut self.rate {
                rate.wait().await;
            }
            let key = key.clone();
            let Some(record) = self.source.take() else { return Ok(false) };
            read += 1;
            let tally = chunk.tallies.of_mut(record.kind());
            tally.read += 1;
            chunk.through = Some(key.clone());
            match found {
                _ if !self.imports.contains(&record.kind()) => {
                    tally.failed += 1;
                    chunk.failures.push(CopyFailure::new(&record, unsupported()));
                }
                Some(found) if self.lines.are_same(&record, &found) => {
                    tally.unchanged += 1;
                    chunk.held = Some(key);
                }
                Some(_) if self.options.on_conflict == OnConflict::Skip => {
                    tally.skipped += 1;
                    chunk.held = Some(key);
                }
                Some(_) if self.options.on_conflict == OnConflict::Fail => {
                    tally.failed += 1;
                    let error = conflict();
                    chunk.failures.push(CopyFailure::new(&record, error.clone()));
                    if !self.options.dry_run {
                        // A resumed copy reads and counts it again.
                        chunk.through = None;
                        return Err(error.with_key(record.key()));
                    }
                }
                Some(_) | None => chunk.writes.push(record),
            }
        }
        Ok(true)
    }
}

#[cold]
fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "the target has a different value for this record").with_retryable(false)
}

#[cold]
fn unsupported() -> Error {
    Error::new(ErrorKind::Unsupported, "the target does not store records of this kind")
}

/// Limits the records per second.
struct RateLimit {
    interval: Duration,
    next: Instant,
    /// The size of a chunk, for about four chunks per second.
    burst: usize,
}

/// How far the limit may lag behind and catch up. A timer is late by a millisecond or so.
const MAX_LAG: Duration = Duration::from_millis(50);

impl RateLimit {
    fn new(rate: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / rate.get();
        Self { interval, next: Instant::now(), burst: (rate.get() as usize / 4).max(1) }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        self.next = self.next.max(now.checked_sub(MAX_LAG).unwrap_or(now)) + self.interval;
        if self.next > now {
            sleep_until(self.next).await;
        }
    }
}

/// Writes a chunk. Records that the target cannot take now are retried, unless the copy stops meanwhile. A
/// record that it will never take is a failure; an error that affects all records stops the copy.
pub(super) async fn write<B: Exportable>(
    target: &Storage<B>,
    mut chunk: Chunk,
    dry_run: bool,
    mut stops: watch::Receiver<bool>,
    mut retrying: impl FnMut(CopyEvent) + Send,
) -> Chunk {
    let mut records = mem::take(&mut chunk.writes).records;
    let (mut pause, mut outcome) = (FIRST_PAUSE, Outcome::NotApplied);
    for attempt in 1.. {
        let failures = if dry_run || records.is_empty() {
            Vec::new()
        } else {
            match target.backend().import(&records).await {
                Ok(report) => report
                    .failures
                    .into_iter()
                    .map(|failure| (failure.index, is_about_record(&failure.error), failure.error))
                    .collect(),
                Err(error) => (0..records.len()).map(|index| (index, false, error.clone())).collect(),
            }
        };
        let (mut failures, mut remaining) = (failures.into_iter().peekable(), Vec::new());
        let (mut last, mut written) = (None, None);
        for (index, record) in records.into_iter().enumerate() {
            let tally = chunk.tallies.of_mut(record.kind());
            match failures.next_if(|(failed, ..)| *failed == index) {
                None => {
                    tally.written += 1;
                    tally.bytes += record.size() as u64;
                    written = Some(record);
                }
                Some((_, true, error)) => {
                    tally.failed += 1;
                    chunk.failures.push(CopyFailure::new(&record, error));
                }
                Some((_, false, error)) => {
                    if error.outcome() == Outcome::Unknown {
                        outcome = Outcome::Unknown;
                    }
                    last = Some(error);
                    remaining.push(record);
                }
            }
        }
        chunk.held = chunk.held.max(written.as_ref().map(RecordKey::from));
        let Some(error) = last else { break };
        if error.is_retryable() && attempt < ATTEMPTS && !*stops.borrow() {
            retrying(CopyEvent::Retrying { error: error.clone(), after: pause });
            // `Err` means that the pause has passed.
            if timeout(pause, stops.wait_for(|stops| *stops)).await.is_err() {
                pause = (2 * pause).min(LONGEST_PAUSE);
                records = remaining;
                continue;
            }
        }
        // The outcome covers all attempts, because a later one does not undo an earlier one.
        (chunk.stopped, chunk.through) = (Some(error.with_outcome(outcome)), None);
        break;
    }
    chunk
}

/// Whether the error concerns this record only.
fn is_about_record(error: &Error) -> bool {
    use ErrorKind::{Corrupt, InvalidKey, InvalidValue, NotFound, Overflow, TooLarge, Unsupported};
    matches!(error.kind(), NotFound | InvalidKey | InvalidValue | TooLarge | Overflow | Corrupt | Unsupported)
        && !error.is_retryable()
}
