//! [`BatchReport`] and [`Found`]: the per-item results of a batch.

use std::{borrow::Borrow, collections::BTreeMap};

use crate::{Credential, Error, Key, error::Kind};

/// The result of a batch of writes. A failed item does not stop the others.
///
/// If all items fail with one transient error, because the server is unreachable for example, a backend with
/// a remote server returns that error instead of a report.
#[derive(Clone, Debug, Default)]
#[must_use = "a batch returns Ok although some of its items failed"]
#[non_exhaustive]
pub struct BatchReport {
    /// How many items were applied.
    pub succeeded: usize,
    /// The items that failed, in the order of the request.
    pub failures: Vec<BatchFailure>,
}

/// One item of a batch that failed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchFailure {
    /// Its index in the request.
    pub index: usize,
    /// Its key.
    pub key: Key,
    /// Why it failed.
    pub error: Error,
}

impl BatchFailure {
    /// The failure of the item at this index of the request.
    #[must_use]
    pub fn new(index: usize, key: &Key, error: Error) -> Self {
        Self { index, key: key.clone(), error }
    }
}

impl BatchReport {
    /// Whether every item was applied.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// Adds the result of one item.
    pub fn record<T>(&mut self, index: usize, key: &Key, result: Result<T, Error>) {
        match result {
            Ok(_) => self.succeeded += 1,
            Err(error) => self.failures.push(BatchFailure::new(index, key, error)),
        }
    }

    /// The report of a batch, given the key and the result of each item.
    pub(crate) fn collect<K: Borrow<Key>, T>(results: impl Iterator<Item = (K, Result<T, Error>)>) -> Self {
        let mut report = Self::default();
        for (index, (key, result)) in results.enumerate() {
            report.record(index, key.borrow(), result);
        }
        report
    }

    /// The report of a batch of deletes, given which ids existed before it: every mention of an id gets the
    /// same result.
    pub(crate) fn of_deletes(ids: &[Key], existed: impl Fn(&Key) -> bool) -> Self {
        Self::collect(ids.iter().map(|id| (id, Error::unless_found(existed(id), Kind::Credential, id))))
    }

    /// Appends the report of a later part of the request, whose first item has the index `offset`.
    pub fn append(&mut self, offset: usize, next: Self) {
        self.succeeded += next.succeeded;
        self.failures.extend(
            next.failures
                .into_iter()
                .map(|failure| BatchFailure { index: offset + failure.index, ..failure }),
        );
    }

    /// The number of applied items, or the first failure as an error: for callers that need all items to
    /// succeed.
    ///
    /// # Errors
    ///
    /// The first failure, if there is one. The other items stay applied.
    pub fn complete(self) -> Result<usize, Error> {
        match self.failures.into_iter().next() {
            None => Ok(self.succeeded),
            Some(failure) => Err(failure.error.with_key(&failure.key)),
        }
    }
}

/// The result of [`get_credentials`](crate::CredentialStore::get_credentials).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Found {
    /// The credentials that exist, sorted by id.
    pub credentials: BTreeMap<Key, Credential>,
    /// The ids that failed, with [`NotFound`](crate::ErrorKind::NotFound) or another error, in the order of
    /// the request.
    pub failures: Vec<BatchFailure>,
}

impl Found {
    /// The credentials, or the first failure as an error: for callers that need all of them.
    ///
    /// # Errors
    ///
    /// The first failure, if there is one.
    pub fn complete(self) -> Result<BTreeMap<Key, Credential>, Error> {
        match self.failures.into_iter().next() {
            None => Ok(self.credentials),
            Some(failure) => Err(failure.error.with_key(&failure.key)),
        }
    }

    /// Looks up every id.
    pub(crate) fn collect(ids: &[Key], get: impl Fn(&Key) -> Result<Credential, Error>) -> Self {
        let mut found = Self::default();
        for (index, id) in ids.iter().enumerate() {
            match get(id) {
                Ok(credential) => drop(found.credentials.insert(id.clone(), credential)),
                Err(error) => found.failures.push(BatchFailure::new(index, id, error)),
            }
        }
        found
    }
}
