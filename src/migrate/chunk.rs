//! What is written by one call: made from the source, compared with the target, and written.

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

/// A chunk ends when so many times its size were read, and found to need no writing: someone waits for news.
const UNCHANGED: usize = 10;

/// How often a chunk is tried. A server that is elected anew takes ten seconds or so.
const TRIES: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Some records of the source, in order, and what became of them.
#[derive(Default)]
pub(super) struct Chunk {
    /// What is to be written.
    writes: storage::Chunk,
    pub(super) tallies: Tallies,
    pub(super) failures: Vec<CopyFailure>,
    /// The last record that was read, if all up to it is done.
    pub(super) through: Option<RecordKey>,
    /// The last one that the target has now.
    pub(super) held: Option<RecordKey>,
    /// Why there is no other chunk after this one, unless the source has ended.
    pub(super) stopped: Option<Error>,
}

/// Makes chunks of a source.
pub(super) struct Chunks<'o, S, T> {
    pub(super) source: Sorted<'o, S>,
    /// What the target had, if it is read.
    pub(super) target: Option<Sorted<'o, T>>,
    options: &'o CopyOptions,
    /// What the target has a place for.
    imports: Vec<RecordKind>,
    lines: Lines,
    pace: Option<Pace>,
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
        let pace = options.rate.map(Pace::new);
        Self { source, target, options, imports, lines: Lines::default(), pace, has_ended: false }
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

    /// Whether there may be more.
    async fn fill(&mut self, chunk: &mut Chunk) -> Result<bool> {
        let most = self.pace.as_ref().map_or(self.options.batch, |pace| pace.burst.min(self.options.batch));
        let mut read = 0;
        while !chunk.writes.is_full(most) && read < UNCHANGED.saturating_mul(most) {
            let Some(key) = self.source.peek().await? else { return Ok(false) };
            let found = match &mut self.target {
                Some(target) => match_of(key, target).await?,
                None => None,
            };
            if let Some(pace) = &mut self.pace {
                pace.wait().await;
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
                    chunk.failures.push(CopyFailure::new(&record, no_place()));
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
                        // It is read and counted again when the copy is resumed.
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
    Error::new(ErrorKind::Conflict, "the target has this record with another value").with_retryable(false)
}

#[cold]
fn no_place() -> Error {
    Error::new(ErrorKind::Unsupported, "the target has no place for records of this kind")
}

/// So many records a second.
struct Pace {
    each: Duration,
    at: Instant,
    /// How many at once: some four times a second.
    burst: usize,
}

const SAVED: Duration = Duration::from_millis(50);

impl Pace {
    fn new(rate: NonZeroU32) -> Self {
        let each = Duration::from_secs(1) / rate.get();
        Self { each, at: Instant::now(), burst: (rate.get() as usize / 4).max(1) }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        // A little time is saved up, since a timer is late by a millisecond or so; no more.
        self.at = self.at.max(now.checked_sub(SAVED).unwrap_or(now)) + self.each;
        if self.at > now {
            sleep_until(self.at).await;
        }
    }
}

/// Writes a chunk. What the target can't take now is tried again, unless the copy stops meanwhile; what it will never take is a
/// failure, unless it would take nothing else either.
pub(super) async fn write<B: Exportable>(
    target: &Storage<B>,
    mut chunk: Chunk,
    dry_run: bool,
    mut stops: watch::Receiver<bool>,
    mut retrying: impl FnMut(CopyEvent) + Send,
) -> Chunk {
    let mut records = mem::take(&mut chunk.writes).records;
    let (mut pause, mut outcome) = (FIRST_PAUSE, Outcome::NotApplied);
    for tried in 1.. {
        let failures = if dry_run || records.is_empty() {
            Vec::new()
        } else {
            match target.backend().import(&records).await {
                Ok(report) => report
                    .failures
                    .into_iter()
                    .map(|failure| (failure.index, is_of_the_record(&failure.error), failure.error))
                    .collect(),
                Err(error) => (0..records.len()).map(|index| (index, false, error.clone())).collect(),
            }
        };
        let (mut failures, mut again) = (failures.into_iter().peekable(), Vec::new());
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
                    again.push(record);
                }
            }
        }
        chunk.held = chunk.held.max(written.as_ref().map(RecordKey::from));
        let Some(error) = last else { break };
        if error.is_retryable() && tried < TRIES && !*stops.borrow() {
            retrying(CopyEvent::Retrying { error: error.clone(), after: pause });
            // An error is the pause that has passed, or a copy that was dropped.
            if timeout(pause, stops.wait_for(|stops| *stops)).await.is_err() {
                pause = (2 * pause).min(LONGEST_PAUSE);
                records = again;
                continue;
            }
        }
        // What an earlier try may have written is not undone by this one.
        (chunk.stopped, chunk.through) = (Some(error.with_outcome(outcome)), None);
        break;
    }
    chunk
}

/// Whether it says nothing about other records.
fn is_of_the_record(error: &Error) -> bool {
    use ErrorKind::{Corrupt, InvalidKey, InvalidValue, NotFound, Overflow, TooLarge, Unsupported};
    matches!(error.kind(), NotFound | InvalidKey | InvalidValue | TooLarge | Overflow | Corrupt | Unsupported)
        && !error.is_retryable()
}
