//! [`Remark`]: a report on legacy data that was not adopted as it is.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use super::named;
use crate::Record;

/// A remark of a reader of legacy data ([`Adoption`](crate::adopt::Adoption) or
/// [`read_go`](crate::archive::read_go)) on data that it did not adopt, or adopted with a change. `Debug`
/// does not print `place`.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Remark {
    /// Whether the data was adopted.
    pub kind: RemarkKind,
    /// Where the data is: a path in the directory, a Redis key, or a table or collection with the row's key.
    /// It contains stored names, so it can be a secret (a client's API key, for example).
    pub place: String,
    /// Why. It contains no stored names or values.
    pub reason: Cow<'static, str>,
}

named! {
    /// What a reader of legacy data did with the data of a [`Remark`].
    RemarkKind {
        /// It could not be read and was not adopted. An operator should look at it.
        NotUnderstood = "not_understood",
        /// It was adopted, but it was changed or may be wrong.
        Changed = "changed",
        /// It was understood, but a store does not keep such data: cache values, records of plans, times of
        /// changes.
        LeftOut = "left_out",
    }
}

impl Remark {
    pub(crate) fn not_understood(place: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: RemarkKind::NotUnderstood, place: place.into(), reason: reason.into() }
    }

    /// A remark on unreadable data, with the text of the error and its causes. Errors quote no data.
    pub(crate) fn unreadable(place: impl Into<String>, error: &crate::Error) -> Self {
        Self::not_understood(place, error.with_causes())
    }
}

impl fmt::Debug for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remark({}: {})", self.kind.as_str(), self.reason)
    }
}

/// An item that a reader of legacy data returns.
pub(crate) enum Piece {
    Record(Record),
    Remark(Remark),
}

impl Piece {
    pub(crate) fn not_understood(place: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Remark(Remark::not_understood(place, reason))
    }

    pub(crate) fn unreadable(place: impl Into<String>, error: &crate::Error) -> Self {
        Self::Remark(Remark::unreadable(place, error))
    }

    pub(crate) fn left_out(place: impl Into<String>, reason: &'static str) -> Self {
        Self::Remark(Remark { kind: RemarkKind::LeftOut, place: place.into(), reason: reason.into() })
    }

    pub(crate) fn changed(place: impl Into<String>, reason: &'static str) -> Self {
        Self::Remark(Remark { kind: RemarkKind::Changed, place: place.into(), reason: reason.into() })
    }
}
