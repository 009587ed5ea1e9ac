//! [`UsageRecord`], [`Increment`], [`IncrementItem`] and [`Within`]: counters.

use std::{borrow::Borrow, collections::BTreeMap};

use serde::Serialize;

use crate::{Error, IntoKey, Key};

/// The counters of one key, sorted by field.
///
/// A field obeys the rules of a [`Key`]; a count is any `i64`. As JSON it is an object with a count per
/// field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UsageRecord(BTreeMap<Key, i64>);

impl UsageRecord {
    /// One counter, if there is one.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<i64> {
        self.0.get(field).copied()
    }

    /// All counters, sorted by field.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Key, i64)> {
        self.0.iter().map(|(field, count)| (field, *count))
    }

    /// The counts, without their fields.
    ///
    /// ```
    /// # use gateway_storage::{Key, UsageRecord};
    /// let record = UsageRecord::from_iter([(Key::new("input")?, 900), (Key::new("output")?, 300)]);
    /// assert_eq!(record.values().sum::<i64>(), 1_200);
    /// # Ok::<_, gateway_storage::Error>(())
    /// ```
    pub fn values(&self) -> impl ExactSizeIterator<Item = i64> {
        self.0.values().copied()
    }

    /// The number of counters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no counters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets a counter.
    pub fn set(&mut self, field: Key, count: i64) {
        self.0.insert(field, count);
    }
}

impl FromIterator<(Key, i64)> for UsageRecord {
    fn from_iter<I: IntoIterator<Item = (Key, i64)>>(counters: I) -> Self {
        Self(counters.into_iter().collect())
    }
}

impl<'r> IntoIterator for &'r UsageRecord {
    type Item = (&'r Key, i64);
    type IntoIter = std::iter::Map<
        std::collections::btree_map::Iter<'r, Key, i64>,
        fn((&'r Key, &'r i64)) -> (&'r Key, i64),
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(field, count)| (field, *count))
    }
}

impl IntoIterator for UsageRecord {
    type Item = (Key, i64);
    type IntoIter = std::collections::btree_map::IntoIter<Key, i64>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The result of [`increment_within`](crate::UsageStore::increment_within).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Within {
    /// The number was added, and this is the new total.
    Counted(i64),
    /// The new total would have been over the limit. Nothing was added, and this is the total.
    Refused(i64),
}

impl Within {
    /// Whether the number was added.
    #[must_use]
    pub const fn is_counted(self) -> bool {
        matches!(self, Self::Counted(_))
    }

    /// The counter's total after the call.
    #[must_use]
    pub const fn total(self) -> i64 {
        match self {
            Self::Counted(total) | Self::Refused(total) => total,
        }
    }

    /// What becomes of a counter with this total.
    pub(crate) fn decide(key: &Key, total: i64, delta: i64, limit: i64) -> Result<Self, Error> {
        match total.checked_add(delta) {
            Some(new) if new <= limit => Ok(Self::Counted(new)),
            None if delta < 0 => Err(Error::overflow().with_key(key)),
            // More than any `i64` is over every limit.
            _ => Ok(Self::Refused(total)),
        }
    }
}

/// One item of [`increment_many`](crate::UsageStore::increment_many).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Increment {
    /// The key of the usage record.
    pub key: Key,
    /// The counter's name in it.
    pub field: Key,
    /// The number to add; it may be negative or zero.
    pub delta: i64,
}

impl Increment {
    /// Adds `delta` to `field` of `key`.
    #[must_use]
    pub fn new(key: &Key, field: &Key, delta: i64) -> Self {
        Self { key: key.clone(), field: field.clone(), delta }
    }
}

/// An item of [`Storage::increment_many`](crate::Storage::increment_many): an [`Increment`], or a tuple of a
/// key, a field and the number to add.
///
/// A slice of `Increment`s costs nothing. The keys and fields of tuples, each a [`Key`] or a string, are
/// checked and copied once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an increment",
    note = "an increment is an `Increment`, or a tuple of a key, a field and an `i64`"
)]
pub trait IncrementItem: Sized {
    /// The checked items: `&[Increment]` for `Increment`s, else `Vec<Increment>`.
    type Checked<'i>: Borrow<[Increment]> + Send + Sync
    where
        Self: 'i;

    /// Checks the items.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`](crate::ErrorKind::InvalidKey), as [`Key::new`].
    fn checked(items: &[Self]) -> Result<Self::Checked<'_>, Error>;
}

impl IncrementItem for Increment {
    type Checked<'i> = &'i [Self];

    #[inline]
    fn checked(items: &[Self]) -> Result<&[Self], Error> {
        Ok(items)
    }
}

impl<K, F> IncrementItem for (K, F, i64)
where
    for<'i> &'i K: IntoKey,
    for<'i> &'i F: IntoKey,
{
    type Checked<'i>
        = Vec<Increment>
    where
        Self: 'i;

    fn checked(items: &[Self]) -> Result<Vec<Increment>, Error> {
        let check = |(key, field, delta): &Self| {
            Ok(Increment::new(key.into_key()?.borrow(), field.into_key()?.borrow(), *delta))
        };
        items.iter().map(check).collect()
    }
}
