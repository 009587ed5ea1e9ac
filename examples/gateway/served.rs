//! Adds up the results of the requests, per worker and then for all workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use gateway_storage::{Error, Increment, Key, Outcome, usage::Totals};

/// The counters in each usage record.
pub(crate) static FIELDS: [Key; 3] =
    [Key::from_static("requests"), Key::from_static("prompt_tokens"), Key::from_static("completion_tokens")];

/// The results as the requests saw them. None of them was read from the store's counters.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) elapsed: Duration,
    pub(crate) answered: u64,
    /// Requests that the upstream refused at every attempt. They are not counted in the store.
    pub(crate) refused: u64,
    pub(crate) retries: u64,
    pub(crate) refreshes: u64,
    /// The number of requests and configuration changes that the storage failed, and one of the errors.
    pub(crate) errors: u64,
    pub(crate) an_error: Option<Error>,
    /// The number of those errors with an unknown outcome: the proof may find more than was counted.
    pub(crate) unknown: u64,
    /// The number of configuration changes, and the revisions that requests read.
    pub(crate) changes: u64,
    pub(crate) revisions: BTreeSet<u64>,
    /// The number of increments that the store confirmed, and their sum per counter, by record and field.
    pub(crate) increments: u64,
    pub(crate) counted: BTreeMap<(Key, Key), i64>,
    /// The duration of each answered request: in the storage, and in total. Sorted at the end.
    pub(crate) on_storage: Vec<Duration>,
    pub(crate) whole: Vec<Duration>,
}

impl Served {
    pub(crate) fn fail(&mut self, error: Error) {
        self.errors += 1;
        self.unknown += u64::from(error.outcome() == Outcome::Unknown);
        self.an_error.get_or_insert(error);
    }

    /// Adds the increments that the totals confirm.
    pub(crate) fn count(&mut self, increments: &[Increment], totals: &Totals) {
        for (Increment { key, field, delta, .. }, total) in increments.iter().zip(&totals.totals) {
            if total.is_some() {
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
        self.unknown += other.unknown;
        self.an_error = self.an_error.take().or(other.an_error);
        self.revisions.extend(other.revisions);
        for (counter, count) in other.counted {
            *self.counted.entry(counter).or_default() += count;
        }
        self.on_storage.extend(other.on_storage);
        self.whole.extend(other.whole);
    }
}

/// Awaits this, and adds its duration to `spent`.
pub(crate) async fn timed<F: Future>(spent: &mut Duration, work: F) -> F::Output {
    let begun = Instant::now();
    let output = work.await;
    *spent += begun.elapsed();
    output
}
