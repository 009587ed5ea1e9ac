//! One error type for every operation of every backend.

use std::{borrow::Cow, error::Error as StdError, fmt, io, iter, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{Key, model::named};

/// The result of every operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whether the operation happened.
///
/// ```
/// # use gateway_storage::{Error, ErrorKind, Key, Outcome};
/// let error = Key::new("").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidKey);
/// assert_eq!(error.outcome(), Outcome::NotApplied);
/// assert!(!error.is_retryable());
/// ```
///
/// # Design
///
/// There is one type, it is one word wide (so is a `Result<()>`) and it is cheap to clone: a group commit
/// that fails returns the same error to every caller that waits for it. Match on [`kind`](Error::kind), and
/// check [`outcome`](Error::outcome) before you repeat a write.
///
/// `Display` prints the message only. `Debug` is for logs: it adds the kind, the [code](Error::code), an
/// unknown outcome and the messages of all [sources](StdError::source). As JSON it is
/// `{ "kind": "busy", "message": "..", "outcome": "not_applied" }`, with the messages of all sources in the
/// message, and with `"code"` if there is one.
///
/// None of them, nor any source, contains a key, a credential, a stored value or a password. The key that
/// an error is about is in [`key`](Error::key): the caller decides whether to show it.
#[derive(Clone, thiserror::Error)]
#[error(transparent)]
pub struct Error(Arc<Inner>);

#[derive(thiserror::Error)]
#[error("{message}")]
struct Inner {
    kind: ErrorKind,
    outcome: Outcome,
    retryable: bool,
    message: Cow<'static, str>,
    code: Option<Box<str>>,
    key: Option<Key>,
    path: Option<Box<str>>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

named! {
    /// The kinds of [`Error`].
    ErrorKind {
        /// There is no such record. `get`, `delete` and `reset` return it on every backend; see
        /// [`OptionalExt::optional`].
        NotFound = "not_found",
        /// A key is empty, longer than [`Key::MAX_BYTES`] or holds a control character.
        InvalidKey = "invalid_key",
        /// A value or an option is not valid for the operation.
        InvalidValue = "invalid_value",
        /// A value is over one of the documented limits.
        TooLarge = "too_large",
        /// An increment would leave the range of `i64`; the counter is unchanged.
        Overflow = "overflow",
        /// The same data was changed concurrently. Read it again and retry.
        Conflict = "conflict",
        /// The backend can't take the call now: its queue is full, or another process has locked the store.
        Busy = "busy",
        /// The deadline passed. [`Error::outcome`] says whether the operation may have been applied.
        Timeout = "timeout",
        /// The backend can't be reached, or can't continue.
        Unavailable = "unavailable",
        /// The backend refused access.
        Denied = "denied",
        /// Stored data is damaged, or is not in a format that this crate writes.
        Corrupt = "corrupt",
        /// The store can't do this, for a reason that the backend's type can't express: its server's version
        /// or topology, for example.
        Unsupported = "unsupported",
        /// The store was closed through one of its handles.
        Closed = "closed",
        /// A defect of this crate or of a driver.
        Internal = "internal",
    }
}

/// Whether a failed operation may have changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The operation changed nothing, and will not do so later.
    NotApplied,
    /// The operation may have been applied, or may still be applied.
    Unknown,
}

impl Error {
    /// Creates an error of this kind, with the outcome [`Outcome::NotApplied`].
    ///
    /// The message is for people: lower case, no final full stop, and never a key, a value or a password.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        use ErrorKind::{Busy, Conflict, Timeout, Unavailable};
        Self(Arc::new(Inner {
            kind,
            outcome: Outcome::NotApplied,
            retryable: matches!(kind, Busy | Conflict | Timeout | Unavailable),
            message: message.into(),
            code: None,
            key: None,
            path: None,
            source: None,
        }))
    }

    /// Sets the outcome.
    #[cold]
    #[must_use]
    pub fn with_outcome(self, outcome: Outcome) -> Self {
        self.edit(|inner| inner.outcome = outcome)
    }

    /// Sets whether the same call may succeed later, in place of what the kind implies.
    #[cold]
    #[must_use]
    pub fn with_retryable(self, retryable: bool) -> Self {
        self.edit(|inner| inner.retryable = retryable)
    }

    /// Sets the backend's own code: an SQLSTATE, a Redis prefix, an `errno`.
    #[cold]
    #[must_use]
    pub fn with_code(self, code: impl Into<Box<str>>) -> Self {
        self.edit(|inner| inner.code = Some(code.into()))
    }

    /// Sets the key that the error is about. It is not printed.
    #[cold]
    #[must_use]
    pub fn with_key(self, key: &Key) -> Self {
        self.edit(|inner| inner.key = Some(key.clone()))
    }

    /// Sets the path to the part of a document that the error is about. It is not printed.
    #[cold]
    #[must_use]
    pub fn with_path(self, path: impl Into<Box<str>>) -> Self {
        self.edit(|inner| inner.path = Some(path.into()))
    }

    /// Sets the cause. The cause's text must contain no key, value or password.
    #[cold]
    #[must_use]
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.edit(|inner| inner.source = Some(Arc::new(source)))
    }

    /// The same error with another message.
    #[cold]
    #[cfg(any(feature = "mongodb", feature = "postgres"))]
    pub(crate) fn with_message(self, message: String) -> Self {
        self.edit(|inner| inner.message = message.into())
    }

    /// The same error without its key.
    #[cold]
    pub(crate) fn without_key(self) -> Self {
        self.edit(|inner| inner.key = None)
    }

    fn edit(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| shared.copy());
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// The kind of error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the operation may have been applied. Repeat a write that isn't
    /// [replayable](crate::layer::Operation::replayable) only after [`Outcome::NotApplied`].
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// Whether the same call may succeed later. That does not make a repetition harmless: see
    /// [`outcome`](Error::outcome).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// Whether waiting can heal it, so that something that never gives up tries again.
    pub(crate) fn passes(&self) -> bool {
        use ErrorKind::{Busy, Conflict, Internal, Timeout, Unavailable};
        matches!(self.kind(), Busy | Conflict | Internal | Timeout | Unavailable)
    }

    /// The backend's own code, if it gave one: an SQLSTATE, a Redis prefix, an `errno`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The key that the error is about, if one record caused it: the missing record of a `get`, `delete` or
    /// `reset`, a counter that would overflow, a record that can't be read. A key can be a secret (a client's
    /// API key, for example), so it is never printed.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// The path to the part of a document that does not fit, such as `token.expires_in`, if one part caused
    /// the error. The names in a document are stored data like its values, so they are never printed.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// The message and those of all causes, in one line.
    pub(crate) fn with_causes(&self) -> String {
        format!("{self}{}", self.0.causes())
    }

    /// Chooses the kind of an I/O error by what the caller can do about it.
    #[cold]
    pub(crate) fn io(message: impl Into<Cow<'static, str>>, error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, PermissionDenied, ReadOnlyFilesystem, UnexpectedEof};
        let kind = match error.kind() {
            PermissionDenied | ReadOnlyFilesystem => ErrorKind::Denied,
            UnexpectedEof | InvalidData => ErrorKind::Corrupt,
            _ => ErrorKind::Unavailable,
        };
        let code = error.raw_os_error().map(|code| format!("os error {code}"));
        code.into_iter().fold(Self::new(kind, message).with_source(error), Self::with_code)
    }

    #[cold]
    pub(crate) fn not_found(what: Kind, key: &Key) -> Self {
        let message = match what {
            Kind::Credential => "no credential has this id",
            Kind::Config => "no config has this key",
            Kind::Usage => "no usage record has this key",
            Kind::Cache => "the cache holds no value for this key",
        };
        Self::new(ErrorKind::NotFound, message).with_key(key)
    }

    /// Ok for a record that was found.
    pub(crate) fn unless_found(is_found: bool, what: Kind, key: &Key) -> Result<(), Self> {
        if is_found { Ok(()) } else { Err(Self::not_found(what, key)) }
    }

    #[cold]
    pub(crate) fn overflow() -> Self {
        Self::new(ErrorKind::Overflow, "the counter would leave the range of i64")
    }

    #[cold]
    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the storage is closed")
    }
}

/// The kinds of records that can be missing.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Credential,
    Config,
    Usage,
    Cache,
}

impl Inner {
    fn copy(&self) -> Self {
        Self {
            kind: self.kind,
            outcome: self.outcome,
            retryable: self.retryable,
            message: self.message.clone(),
            code: self.code.clone(),
            key: self.key.clone(),
            path: self.path.clone(),
            source: self.source.clone(),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_debug(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_debug(f)
    }
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Error", 3 + usize::from(self.code().is_some()))?;
        fields.serialize_field("kind", &self.kind())?;
        fields.serialize_field("message", &self.with_causes())?;
        fields.serialize_field("outcome", &self.outcome())?;
        match self.code() {
            Some(code) => fields.serialize_field("code", code)?,
            None => fields.skip_field("code")?,
        }
        fields.end()
    }
}

impl Inner {
    /// The messages of the causes, each after a colon.
    fn causes(&self) -> String {
        // With `Display`: a driver's `Debug` can contain statements and parameters.
        let first = self.source.as_deref().map(|source| source as &dyn StdError);
        let causes = iter::successors(first, |&cause| cause.source());
        causes.map(|cause| format!(": {cause}")).collect()
    }

    fn fmt_debug(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes = self.causes();
        write!(f, "{}: {}", self.kind, self.message)?;
        // The standard library's text of an I/O error ends with the code.
        if let Some(code) = self.code.as_deref().filter(|code| !causes.contains(&format!("({code})"))) {
            write!(f, " [{code}]")?;
        }
        if self.outcome == Outcome::Unknown {
            f.write_str(" (outcome unknown)")?;
        }
        f.write_str(&causes)
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// Turns [`ErrorKind::NotFound`] into `None`.
///
/// ```
/// # use gateway_storage::{Memory, OptionalExt, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// let storage = Storage::<Memory>::open("memory:").await?;
/// assert!(storage.get_config("retries").await.optional()?.is_none());
/// # Ok(()) }
/// ```
pub trait OptionalExt<T> {
    /// `Ok(Some(_))` for a value, `Ok(None)` for [`ErrorKind::NotFound`], any other error unchanged.
    fn optional(self) -> Result<Option<T>>;
}

impl<T> OptionalExt<T> for Result<T> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_word_wide() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn debug_prints_the_chain_of_causes_and_never_the_key() {
        let key = Key::new("sk-client-api-key").unwrap();
        let error = Error::new(ErrorKind::Corrupt, "a usage record can't be read")
            .with_key(&key)
            .with_code("E1")
            .with_outcome(Outcome::Unknown)
            .with_source(io::Error::other("disk"));
        assert_eq!(
            format!("{error:?}"),
            "corrupt: a usage record can't be read [E1] (outcome unknown): disk"
        );
        assert_eq!(error.to_string(), "a usage record can't be read");
        assert_eq!(
            serde_json::to_string(&error).unwrap(),
            r#"{"kind":"corrupt","message":"a usage record can't be read: disk","outcome":"unknown","code":"E1"}"#
        );
        assert_eq!(error.source().unwrap().to_string(), "disk");
        assert_eq!(error.key(), Some(&key));
    }

    #[test]
    fn a_code_that_the_cause_includes_is_printed_once() {
        let refused = Error::io("the server can't be reached", io::Error::from_raw_os_error(5));
        assert_eq!(refused.code(), Some("os error 5"));
        let text = format!("{refused:?}");
        assert_eq!(text.matches("os error 5").count(), 1, "{text}");
    }

    #[test]
    fn editing_a_clone_leaves_the_original_unchanged() {
        let first = Error::new(ErrorKind::Busy, "busy");
        let second = first.clone().with_retryable(false);
        assert!(first.is_retryable() && !second.is_retryable());
    }
}
