//! Errors of libgit2 as errors of this crate. Its texts name files and servers, so they are dropped.

use std::{borrow::Cow, path::Path};

use git2::{ErrorClass, ErrorCode};

use crate::{Error, ErrorKind, Outcome};

/// An error of libgit2.
#[cold]
pub(super) fn failed(message: impl Into<Cow<'static, str>>, error: git2::Error) -> Error {
    let kind = match (error.class(), error.code()) {
        (_, ErrorCode::Locked) => ErrorKind::Busy,
        (_, ErrorCode::Auth | ErrorCode::Certificate | ErrorCode::Owner) => ErrorKind::Denied,
        (ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssh | ErrorClass::Ssl | ErrorClass::Os, _) => {
            ErrorKind::Unavailable
        }
        (ErrorClass::Odb | ErrorClass::Object | ErrorClass::Tree, _) => ErrorKind::Corrupt,
        (ErrorClass::Zlib | ErrorClass::Indexer, _) | (_, ErrorCode::NotFound) => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, message).with_code(code_of(&error))
}

/// Its class and its code.
pub(super) fn code_of(error: &git2::Error) -> String {
    format!("{:?} {:?}", error.class(), error.code())
}

/// The history of the repository can't be read.
#[cold]
pub(super) fn unread(error: git2::Error) -> Error {
    failed("the history can't be read", error)
}

/// A value, or None if libgit2 did not find it.
pub(super) fn found<T>(result: Result<T, git2::Error>) -> Result<Option<T>, git2::Error> {
    match result {
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The repository belongs to another user; libgit2 opens it only if a setting of this user allows it.
#[cold]
pub(super) fn foreign(path: &Path, error: &git2::Error) -> Error {
    // The setting is compared with the resolved path.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let message = format!(
        "the repository in {0} belongs to another user: `git config --global --add safe.directory '{0}'` allows this if the user of this process runs it with the same HOME",
        path.display()
    );
    Error::new(ErrorKind::Denied, message).with_code(code_of(error))
}

#[cold]
pub(super) fn refused(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidValue, message)
}

#[cold]
pub(super) fn unanswered() -> Error {
    Error::new(ErrorKind::Timeout, "the deadline passed while the repository was being written")
        .with_outcome(Outcome::Unknown)
}
