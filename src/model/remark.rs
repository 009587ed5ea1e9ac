//! [`Remark`]: what was found while another program's data was read.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use crate::Record;

/// What a reader of another program's data ([`Adoption`](crate::Adoption), [`read_go`](crate::archive::read_go)) has to say of
/// one thing that it found. `Debug` does not show the place.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Remark {
    /// What became of it.
    pub kind: RemarkKind,
    /// Where it is: a path in the folder, a Redis key, a table or collection with the row's key. It holds stored names, so
    /// it can be a secret (a client's API key).
    pub place: String,
    /// Why. It holds no stored names or values.
    pub reason: Cow<'static, str>,
}

/// What becomes of a thing that such a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RemarkKind {
    /// It can't be read, and is not adopted. Somebody should look at it.
    NotUnderstood,
    /// It is adopted, but it is not word for word what is there, or there is reason to doubt it.
    Changed,
    /// It is understood, and has no place in a store: cache values, records of plans, times of changes.
    LeftOut,
}

impl RemarkKind {
    /// The kind's stable name: `"not_understood"`, `"changed"`, `"left_out"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not_understood",
            Self::Changed => "changed",
            Self::LeftOut => "left_out",
        }
    }
}

impl Remark {
    pub(crate) fn not_understood(place: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: RemarkKind::NotUnderstood, place: place.into(), reason: reason.into() }
    }

    /// What can't be read, by the error that says why. Errors quote nothing.
    pub(crate) fn unreadable(place: impl Into<String>, error: &crate::Error) -> Self {
        Self::not_understood(place, told(error))
    }
}

/// An error and what caused it, in one line.
pub(crate) fn told(error: &crate::Error) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

impl fmt::Debug for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remark({}: {})", self.kind.as_str(), self.reason)
    }
}

/// What a reader of another program's data comes across.
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
