//! What the requests did: added up by each worker, then together.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use gateway_storage::{BatchReport, Error, Increment, Key, Outcome};

/// What is counted in each usage record.
pub(crate) const FIELDS: [&str; 3] = ["requests", "prompt_tokens", "completion_tokens"];

/// What the requests did, as they saw it: nothing in it was read back from the store's counters.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) elapsed: Duration,
    pub(crate) answered: u64,
    /// Given up on after the last retry, and so not counted.
    pub(crate) refused: u64,
    pub(crate) retries: u64,
    pub(crate) refreshes: u64,
    /// Requests and changes that the storage failed, and how it failed one of them.
    pub(crate) errors: u64,
    pub(crate) an_error: Option<Error>,
    /// Those of them that the store may have applied all the same: the proof may find more than was counted.
    pub(crate) unclear: u64,
    /// The configurations that were written, and the revisions that requests read.
    pub(crate) changes: u64,
    pub(crate) revisions: BTreeSet<u64>,
    /// How many increments the store confirmed, and what they added to each counter, by record and field.
    pub(crate) increments: u64,
    pub(crate) counted: BTreeMap<(Key, Key), i64>,
    /// How long each answered request took, on storage and as a whole. Sorted at the end.
    pub(crate) on_storage: Vec<Duration>,
    pub(crate) whole: Vec<Duration>,
}

impl Served {
    pub(crate) fn fail(&mut self, error: Error) {
        self.errors += 1;
        self.unclear += u64::from(error.outcome() == Outcome::Unknown);
        self.an_error.get_or_insert(error);
    }

    /// Adds up what the store says it has counted.
    pub(crate) fn count(&mut self, increments: &[Increment], report: &BatchReport) {
        for (index, Increment { key, field, delta }) in increments.iter().enumerate() {
            if !report.failures.iter().any(|failure| failure.index == index) {
                *self.counted.entry((key.clone(), field.clone())).or_default() += delta;
                self.increments += 1;
            }
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.retries += other.retries;
        self.refreshes += other.refreshes;
        self.increments += other.increments;
        self.changes += other.changes;
        self.errors += other.errors;
        self.unclear += other.unclear;
        self.an_error = self.an_error.take().or(other.an_error);
        self.revisions.extend(other.revisions);
        for (counter, count) in other.counted {
            *self.counted.entry(counter).or_default() += count;
        }
        self.on_storage.extend(other.on_storage);
        self.whole.extend(other.whole);
    }
}

/// Runs this and adds the time it took.
pub(crate) async fn timed<F: Future>(spent: &mut Duration, work: F) -> F::Output {
    let begun = Instant::now();
    let output = work.await;
    *spent += begun.elapsed();
    output
}
