//! What a batch did: how many items succeeded, and each failure by name.

use std::collections::BTreeMap;

use crate::{Credential, Error, Key, error::Kind};

/// What a batch of writes did. One bad item does not stop the others.
///
/// If every item failed with one error that may pass (the server is away, say), a backend behind a network gives that error and no
/// report: the call failed.
#[derive(Clone, Debug, Default)]
#[must_use = "a batch returns Ok although some of its items failed"]
pub struct BatchReport {
    /// How many items were applied.
    pub succeeded: usize,
    /// The items that were not, in the order of the request.
    pub failures: Vec<BatchFailure>,
}

/// One item of a batch that failed.
#[derive(Clone, Debug)]
pub struct BatchFailure {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Its key.
    pub key: Key,
    /// Why.
    pub error: Error,
}

impl BatchReport {
    /// Whether every item was applied.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// Counts one more item, by its result.
    pub fn record<T>(&mut self, index: usize, key: &Key, result: Result<T, Error>) {
        match result {
            Ok(_) => self.succeeded += 1,
            Err(error) => self.failures.push(BatchFailure { index, key: key.clone(), error }),
        }
    }

    /// The report of a batch of deletes, given what was there before: every mention of an id gets the same result.
    pub(crate) fn of_deletes(ids: &[Key], was_there: impl Fn(&Key) -> bool) -> Self {
        let mut report = Self::default();
        for (index, id) in ids.iter().enumerate() {
            let result = if was_there(id) { Ok(()) } else { Err(Error::not_found(Kind::Credential, id)) };
            report.record(index, id, result);
        }
        report
    }

    /// Adds the report of the items that came after `offset` others.
    pub fn append(&mut self, offset: usize, next: Self) {
        self.succeeded += next.succeeded;
        self.failures.extend(
            next.failures
                .into_iter()
                .map(|failure| BatchFailure { index: offset + failure.index, ..failure }),
        );
    }

    /// The report, or the first failure as an error, for callers to whom a part is a failure.
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

/// What [`get_credentials`](crate::CredentialStore::get_credentials) found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The credentials that are there, sorted by id.
    pub credentials: BTreeMap<Key, Credential>,
    /// The ids that gave an error, [`NotFound`](crate::ErrorKind::NotFound) among them, in the order of the request.
    pub failures: Vec<BatchFailure>,
}

impl Found {
    /// The credentials, or the first failure as an error, for callers to whom a missing one is a failure.
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

    /// Looks every id up.
    pub(crate) fn collect(ids: &[Key], get: impl Fn(&Key) -> Result<Credential, Error>) -> Self {
        let mut found = Self::default();
        for (index, id) in ids.iter().enumerate() {
            match get(id) {
                Ok(credential) => drop(found.credentials.insert(id.clone(), credential)),
                Err(error) => found.failures.push(BatchFailure { index, key: id.clone(), error }),
            }
        }
        found
    }
}
