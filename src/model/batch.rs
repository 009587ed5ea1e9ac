//! [`BatchItem`]: an item of a batch. [`BatchReport`], [`Found`] and [`Totals`]: the per-item results of a
//! batch.

use std::{borrow::Borrow, collections::BTreeMap, fmt};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{ConfigValue, Credential, Error, ErrorKind, IntoKey, Key, Outcome, UsageRecord, error::Kind};

/// An item of a batch of writes: a pair of a key and a value, or a reference to one.
///
/// The key is a [`Key`] or a string. The value is a `V` or what converts into it:
/// [`Storage::set_credentials`](crate::Storage::set_credentials) takes a [`Credential`] or a JSON object,
/// [`Storage::set_configs`](crate::Storage::set_configs) a [`ConfigValue`] or JSON.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pair of a key and a value that converts into `{V}`",
    note = "a key is a `Key` or a string; a `Credential` is made of a JSON object, a `ConfigValue` of JSON"
)]
pub trait BatchItem<V> {
    /// Checks the key and the value.
    ///
    /// # Errors
    ///
    /// As [`Key::new`], and as the conversion of the value.
    fn into_item(self) -> Result<(Key, V), Error>;
}

impl<V, K: IntoKey, T: TryInto<V>> BatchItem<V> for (K, T)
where
    Error: From<T::Error>,
{
    fn into_item(self) -> Result<(Key, V), Error> {
        Ok((self.0.into_key()?.borrow().clone(), self.1.try_into()?))
    }
}

impl<'p, V, K, T> BatchItem<V> for &'p (K, T)
where
    &'p K: IntoKey,
    &'p T: TryInto<V>,
    Error: From<<&'p T as TryInto<V>>::Error>,
{
    fn into_item(self) -> Result<(Key, V), Error> {
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
    /// The failure of the item at this index of the request. An error without a key gets this one.
    #[must_use]
    pub fn new(index: usize, key: &Key, error: Error) -> Self {
        let error = if error.key().is_none() { error.with_key(key) } else { error };
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

/// The result of reading many records, such as [`get_credentials`](crate::CredentialStore::get_credentials).
///
/// `Debug` prints no values. As JSON, credentials are [redacted](Credential::redacted).
#[derive(Clone)]
#[non_exhaustive]
pub struct Found<V> {
    /// The values that exist, sorted by key.
    pub values: BTreeMap<Key, V>,
    /// The keys that failed, with [`NotFound`](crate::ErrorKind::NotFound) or another error, in the order of
    /// the request.
    pub failures: Vec<BatchFailure>,
}

impl<V> Default for Found<V> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), failures: Vec::new() }
    }
}

impl<V> fmt::Debug for Found<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = format_args!("{} values", self.values.len());
        f.debug_struct("Found").field("values", &values).field("failures", &self.failures).finish()
    }
}

impl<V> Found<V> {
    /// The values, or the first failure as an error: for callers that need all of them.
    ///
    /// # Errors
    ///
    /// The first failure, if there is one.
    pub fn complete(self) -> Result<BTreeMap<Key, V>, Error> {
        match self.failures.into_iter().next() {
            None => Ok(self.values),
            Some(failure) => Err(failure.error.with_key(&failure.key)),
        }
    }

    /// Adds the result of one key, which has this index in the request.
    pub fn record(&mut self, index: usize, key: &Key, result: Result<V, Error>) {
        match result {
            Ok(value) => drop(self.values.insert(key.clone(), value)),
            Err(error) => self.failures.push(BatchFailure::new(index, key, error)),
        }
    }

    /// Looks up every key.
    pub(crate) fn collect(keys: &[Key], mut get: impl FnMut(&Key) -> Result<V, Error>) -> Self {
        let mut found = Self::default();
        for (index, key) in keys.iter().enumerate() {
            found.record(index, key, get(key));
        }
        found
    }

    /// Returns the values found, or an error for the whole call: see [`common_error`].
    pub(crate) fn settle(self) -> Result<Self, Error> {
        match self.values.len() {
            0 => common_error(&self.failures).map_or(Ok(self), Err),
            _ => Ok(self),
        }
    }
}

/// A value as a report shows it.
trait Shown {
    fn shown(&self) -> impl Serialize;
}

impl Shown for Credential {
    fn shown(&self) -> impl Serialize {
        self.redacted()
    }
}

impl Shown for ConfigValue {
    fn shown(&self) -> impl Serialize {
        self
    }
}

impl Shown for UsageRecord {
    fn shown(&self) -> impl Serialize {
        self
    }
}

impl<V: Shown> Serialize for Found<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Values<'v, V>(&'v BTreeMap<Key, V>);

        impl<V: Shown> Serialize for Values<'_, V> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(key, value)| (key, value.shown())))
            }
        }

        let mut fields = serializer.serialize_struct("Found", 2)?;
        fields.serialize_field("values", &Values(&self.values))?;
        fields.serialize_field("failures", &self.failures)?;
        fields.end()
    }
}

/// The result of [`increment_many`](crate::UsageStore::increment_many).
///
/// If all items fail with one transient error, the batch returns that error instead.
#[derive(Clone, Debug, Default, Serialize)]
#[must_use = "a batch returns Ok although some of its items failed"]
#[non_exhaustive]
pub struct Totals {
    /// The counter's new total after each item, in the order of the request. `None`: the item failed.
    pub totals: Vec<Option<i64>>,
    /// The items that failed, in the order of the request.
    pub failures: Vec<BatchFailure>,
}

impl Totals {
    /// Whether every item was counted.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// Adds the result of the next item.
    pub fn record(&mut self, key: &Key, result: Result<i64, Error>) {
        let index = self.totals.len();
        self.totals.push(result.as_ref().ok().copied());
        if let Err(error) = result {
            self.failures.push(BatchFailure::new(index, key, error));
        }
    }

    /// The totals, or the first failure as an error: for callers that need all items to succeed.
    ///
    /// # Errors
    ///
    /// The first failure, if there is one. The other items stay counted.
    pub fn complete(self) -> Result<Vec<i64>, Error> {
        match self.failures.into_iter().next() {
            None => Ok(self.totals.into_iter().flatten().collect()),
            Some(failure) => Err(failure.error.with_key(&failure.key)),
        }
    }

    /// The totals of a batch, given the key and the result of each item.
    pub(crate) fn collect<K: Borrow<Key>>(results: impl Iterator<Item = (K, Result<i64, Error>)>) -> Self {
        let mut totals = Self { totals: Vec::with_capacity(results.size_hint().0), ..Self::default() };
        for (key, result) in results {
            totals.record(key.borrow(), result);
        }
        totals
    }

    /// Returns the totals, or an error for the whole call: see [`common_error`].
    pub(crate) fn settle(self) -> Result<Self, Error> {
        if self.failures.len() < self.totals.len() {
            return Ok(self);
        }
        common_error(&self.failures).map_or(Ok(self), Err)
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
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_print_no_values() {
        let key = Key::new("sk-secret").unwrap();
        let credential = Credential::try_from(json!({ "token": "secret" })).unwrap();
        let mut found = Found::default();
        found.record(0, &key, Ok(credential));
        found.record(1, &key, Err(Error::new(ErrorKind::NotFound, "missing")));
        assert_eq!(found.failures[0].error.key(), Some(&key));
        assert!(!format!("{found:?}").contains("secret"));
        let shown = json!(found);
        assert_eq!(shown["values"]["sk-secret"], json!(found.values[&key].redacted()));
        assert!(!shown.to_string().contains(r#""secret""#));
        let cached = Found { values: [(key, b"secret".to_vec())].into(), failures: Vec::new() };
        assert!(!format!("{cached:?}").contains("115"));
    }

    #[test]
    fn totals_are_in_the_order_of_the_items() {
        let mut totals = Totals::default();
        let key = Key::new("a").unwrap();
        totals.record(&key, Ok(1));
        totals.record(&key, Err(Error::new(ErrorKind::Overflow, "too much")));
        assert_eq!((totals.totals.as_slice(), totals.failures[0].index), ([Some(1), None].as_slice(), 1));
        assert_eq!(totals.clone().settle().unwrap().complete().unwrap_err().kind(), ErrorKind::Overflow);
        let gone = Error::new(ErrorKind::Unavailable, "gone");
        let lost = Totals::collect([(&key, Err(gone.clone())), (&key, Err(gone))].into_iter());
        assert_eq!(lost.settle().unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(Totals::default().settle().unwrap().is_complete());
    }

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
