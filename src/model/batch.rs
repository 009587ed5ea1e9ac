//! [`CredentialItem`]: an item of a batch. [`BatchReport`] and [`Found`]: the per-item results of a batch.

use std::{borrow::Borrow, collections::BTreeMap};

use serde::{Serialize, Serializer};

use crate::{Credential, Error, ErrorKind, IntoKey, Key, Outcome, error::Kind};

/// An item of [`Storage::set_credentials`](crate::Storage::set_credentials): a pair of a key and a
/// credential, or a reference to one.
///
/// The key is a [`Key`] or a string, the credential a [`Credential`] or a JSON object.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pair of a key and a credential",
    note = "a key is a `Key` or a string, a credential is a `Credential` or a JSON object"
)]
pub trait CredentialItem {
    /// Checks the key and the credential.
    ///
    /// # Errors
    ///
    /// As [`Key::new`] and [`Credential::new`].
    fn into_item(self) -> Result<(Key, Credential), Error>;
}

impl<K: IntoKey, C: TryInto<Credential>> CredentialItem for (K, C)
where
    Error: From<C::Error>,
{
    fn into_item(self) -> Result<(Key, Credential), Error> {
        Ok((self.0.into_key()?.borrow().clone(), self.1.try_into()?))
    }
}

impl<'p, K, C> CredentialItem for &'p (K, C)
where
    &'p K: IntoKey,
    &'p C: TryInto<Credential>,
    Error: From<<&'p C as TryInto<Credential>>::Error>,
{
    fn into_item(self) -> Result<(Key, Credential), Error> {
        (&self.0, &self.1).into_item()
    }
}

/// The result of a batch of writes. A failed item does not stop the others.
///
/// If all items fail with one transient error, because the server is unreachable for example, the batch
/// returns that error instead of a report.
#[derive(Clone, Debug, Default, Serialize)]
#[must_use = "a batch returns Ok although some of its items failed"]
#[non_exhaustive]
pub struct BatchReport {
    /// How many items were applied.
    pub succeeded: usize,
    /// The items that failed, in the order of the request.
    pub failures: Vec<BatchFailure>,
}

/// One item of a batch that failed. As JSON it shows the key, which can be a secret.
#[derive(Clone, Debug, Serialize)]
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

    /// Returns the report, or an error for the whole call: see [`common_error`].
    pub(crate) fn settle(self) -> Result<Self, Error> {
        match self.succeeded {
            0 => common_error(&self.failures).map_or(Ok(self), Err),
            _ => Ok(self),
        }
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

/// The result of [`get_credentials`](crate::CredentialStore::get_credentials). As JSON the credentials are
/// [redacted](Credential::redacted).
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// The credentials that exist, sorted by id.
    #[serde(serialize_with = "redacted")]
    pub credentials: BTreeMap<Key, Credential>,
    /// The ids that failed, with [`NotFound`](crate::ErrorKind::NotFound) or another error, in the order of
    /// the request.
    pub failures: Vec<BatchFailure>,
}

fn redacted<S: Serializer>(
    credentials: &BTreeMap<Key, Credential>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(credentials.iter().map(|(id, credential)| (id, credential.redacted())))
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

    /// Returns the credentials found, or an error for the whole call: see [`common_error`].
    pub(crate) fn settle(self) -> Result<Self, Error> {
        match self.credentials.len() {
            0 => common_error(&self.failures).map_or(Ok(self), Err),
            _ => Ok(self),
        }
    }
}

/// The error of the call if every item failed with the same retryable error, or because the store is closed:
/// the store failed then, not the items, and retries and their budget depend on it. The outcome is Unknown if
/// that of any item is.
fn common_error(failures: &[BatchFailure]) -> Option<Error> {
    let first = &failures.first()?.error;
    let of_store = |error: &Error| error.is_retryable() || error.kind() == ErrorKind::Closed;
    let alike =
        |error: &Error| of_store(error) && (error.kind(), error.code()) == (first.kind(), first.code());
    if !failures.iter().all(|failure| alike(&failure.error)) {
        return None;
    }
    let unknown = failures.iter().find(|failure| failure.error.outcome() == Outcome::Unknown);
    let error = unknown.map_or(first, |failure| &failure.error).clone();
    Some(if failures.len() == 1 { error } else { error.without_key() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(errors: impl IntoIterator<Item = Option<Error>>) -> Result<BatchReport, Error> {
        let mut report = BatchReport::default();
        for (index, error) in errors.into_iter().enumerate() {
            let key = Key::new(&format!("k{index}")).unwrap();
            report.record(index, &key, error.map_or(Ok(()), |error| Err(error.with_key(&key))));
        }
        report.settle()
    }

    #[test]
    fn a_batch_fails_if_all_items_failed_with_the_same_error_of_the_store() {
        let gone = || Some(Error::new(ErrorKind::Unavailable, "gone"));
        let lost = || gone().map(|error| error.with_outcome(Outcome::Unknown));
        let bad = || Some(Error::new(ErrorKind::Overflow, "too much"));

        let error = settled([gone(), gone()]).unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(error.is_retryable() && error.key().is_none(), "the error is about no single item");
        let error = settled([gone(), lost(), gone()]).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "one chunk may have been applied");
        assert!(settled([gone()]).unwrap_err().key().is_some());
        let closed = settled([Some(Error::closed()), Some(Error::closed())]).unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::Closed);

        let busy = || Some(Error::new(ErrorKind::Busy, "busy"));
        for errors in
            [vec![], vec![gone(), None], vec![gone(), bad()], vec![gone(), busy()], vec![bad(), bad()]]
        {
            assert!(settled(errors).is_ok());
        }
    }
}
