//! Converts the errors of the driver and the server. Their texts can quote values, so only codes are kept.

use std::{
    error::Error as StdError,
    io::ErrorKind::{PermissionDenied, TimedOut},
};

use tokio_postgres::error::{DbError, Severity};

use super::tls;
use crate::{
    Error, ErrorKind,
    backend::remote::{Effect, trust::refusal, unreachable},
};

/// The server's name in errors.
pub(super) const SERVER: &str = "the PostgreSQL server";

/// The error of a request that was sent.
#[cold]
pub(super) fn of_request(error: &tokio_postgres::Error, effect: Effect) -> Error {
    match error.as_db_error() {
        // The server ends the session. It may have applied the request before.
        Some(reply) if is_fatal(reply) => of_code(reply.code().code()).with_outcome(effect.when_lost()),
        Some(reply) => of_code(reply.code().code()),
        None => lost(error).with_outcome(effect.when_lost()),
    }
}

/// The state of a connection after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// The server replied, and the connection can't be used any more.
    Unusable,
    /// The server takes no writes: see `Connection::retire_read_only`.
    ReadOnly,
    /// The reply may still come.
    Dirty,
}

/// The state of a connection after an error.
pub(super) fn state_after(error: &tokio_postgres::Error) -> State {
    let Some(reply) = error.as_db_error() else { return State::Dirty };
    match reply.code().code() {
        _ if is_fatal(reply) => State::Unusable,
        "25006" => State::ReadOnly,
        // A pooler loses prepared statements, and a migration changes their results.
        "26000" | "42P05" | "0A000" => State::Unusable,
        _ => State::Ready,
    }
}

fn is_fatal(reply: &DbError) -> bool {
    match reply.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        None => reply.code().code().starts_with("57P"),
    }
}

/// The error of opening a connection: no request was sent.
#[cold]
pub(super) fn of_dial(error: &tokio_postgres::Error, behind_pooler: bool) -> Error {
    if let Some(reply) = error.as_db_error() {
        return match reply.code().code() {
            // PgBouncer's reply to unknown settings, and RDS Proxy's to any.
            code @ ("08P01" | "0A000") if !behind_pooler => of_code("26000").with_code(code),
            code => of_code(code),
        };
    }
    if let Some(failed) = cause::<rustls::Error>(error) {
        return refusal(SERVER, failed, &tls::NAMES);
    }
    // The kinds of the driver's errors are private, so their texts are compared.
    match error.to_string().as_str() {
        "error performing TLS handshake" => {
            Error::new(ErrorKind::Denied, "the PostgreSQL server offers no TLS, which the options require")
        }
        "authentication error" | "invalid configuration" if requires_binding(error) => Error::new(
            ErrorKind::Denied,
            "the PostgreSQL server does not offer channel binding, which the options require: it needs TLS, a SCRAM password \
             (`password_encryption`) and a certificate that is not signed with Ed25519",
        ),
        "authentication error" | "invalid configuration" => {
            Error::new(ErrorKind::Denied, "the PostgreSQL server requires another login, such as a password")
        }
        _ => match cause::<std::io::Error>(error) {
            // The driver's own timeout.
            Some(cause) if cause.kind() == TimedOut && cause.raw_os_error().is_none() => connect_timeout(),
            // The driver's error for a read-only server, when the target must take writes.
            Some(cause) if cause.kind() == PermissionDenied && cause.raw_os_error().is_none() => {
                of_code("25006")
            }
            _ => lost(error),
        },
    }
}

/// Says what to do if no TLS is wanted, where it is used only because the server has it.
#[cold]
pub(super) fn with_optional_tls(error: Error, failed: &tokio_postgres::Error) -> Error {
    let hint = match error.code() {
        Some("28000") => "if it accepts it only without TLS, set `sslmode=disable`",
        None if cause::<rustls::Error>(failed).is_some() => "if no TLS is wanted, set `sslmode=disable`",
        _ => return error,
    };
    let message = format!("{error}; {hint}");
    error.with_message(message)
}

#[cold]
pub(super) fn connect_timeout() -> Error {
    Error::new(ErrorKind::Timeout, "timed out connecting to the PostgreSQL server")
}

/// Whether the driver refused a login without channel binding. Only the text of its error shows that.
fn requires_binding(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(|cause| cause.to_string().contains("channel binding"))
}

/// Adds the address to an error of connecting.
#[cold]
pub(super) fn at(address: &str, error: Error) -> Error {
    let message = error.to_string();
    let message = match message.split_once(SERVER) {
        Some((before, after)) => format!("{before}{SERVER} at {address}{after}"),
        None => format!("{address}: {message}"),
    };
    error.with_message(message)
}

/// Merges the errors of several hosts into the most significant one, with the other texts before its own.
#[cold]
pub(super) fn of_all(mut failures: Vec<Error>) -> Error {
    let significance = |error: &Error| match (error.kind(), error.code()) {
        (_, Some("25006")) => 1,
        (ErrorKind::Unavailable | ErrorKind::Timeout, _) => 0,
        // The server replied, and waiting would not help.
        _ => 2,
    };
    let mut first = 0;
    for (index, error) in failures.iter().enumerate() {
        if significance(error) > significance(&failures[first]) {
            first = index;
        }
    }
    let main = failures.remove(first);
    let mut message = String::new();
    for error in failures {
        let code = error.code().map(|code| format!(" [{code}]")).unwrap_or_default();
        message += &format!("{error}{code}; ");
    }
    message += &main.to_string();
    main.with_message(message)
}

#[cold]
fn lost(error: &tokio_postgres::Error) -> Error {
    unreachable(SERVER, cause::<std::io::Error>(error))
}

/// The first cause of this type. It also looks inside I/O errors, whose `source` skips the error that they
/// wrap.
fn cause<T: StdError + 'static>(error: &tokio_postgres::Error) -> Option<&T> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The error for an SQLSTATE.
#[cold]
pub(super) fn of_code(code: &str) -> Error {
    use ErrorKind::{
        Busy, Conflict, Corrupt, Denied, Internal, InvalidValue, Overflow, Timeout, Unavailable, Unsupported,
    };
    let (kind, message) = match code {
        "22003" => (Overflow, "the counter would leave the range of i64"),
        "40001" | "23505" => {
            (Conflict, "a concurrent change conflicts with the transaction; retry it from the start")
        }
        "40P01" => (Conflict, "a deadlock rolled the transaction back; retry it from the start"),
        "25P02" => (Conflict, "the transaction failed earlier and was rolled back"),
        "57014" => {
            (Timeout, "the PostgreSQL server cancelled the statement (`statement_timeout` or deadline)")
        }
        "55P03" => (Busy, "timed out waiting for a lock that another transaction holds (`lock_timeout`)"),
        "25P03" | "25P04" => (Timeout, "the transaction was idle or open for too long and was rolled back"),
        "53300" => (Busy, "the PostgreSQL server has no free connection"),
        "53100" => (Unavailable, "the PostgreSQL server's disk is full"),
        "57P03" => (Unavailable, "the PostgreSQL server is starting or shutting down"),
        "25006" => (Unavailable, "the PostgreSQL server takes no writes: it is a standby, or read-only"),
        "28P01" | "28000" => (Denied, "the PostgreSQL server does not accept the login"),
        "42501" => (Denied, "the PostgreSQL role lacks the privilege for this"),
        "3D000" => (InvalidValue, "the PostgreSQL server has no database of this name"),
        "42P01" | "42703" | "3F000" => (Corrupt, "the store's tables are missing or have unexpected columns"),
        "26000" | "42P05" => {
            (Unsupported, "the PostgreSQL server seems to be behind a pooler: set `pgbouncer`")
        }
        "54000" | "54001" => (Unsupported, "the value exceeds a limit of the PostgreSQL server"),
        _ => match code.get(..2) {
            Some("53") => (Busy, "the PostgreSQL server is short of memory or another resource"),
            Some("08" | "57" | "58") => (Unavailable, "the PostgreSQL server ended the connection"),
            Some("28") => (Denied, "the PostgreSQL server does not accept the login"),
            Some("0A") => (Unsupported, "the PostgreSQL server can't do this"),
            Some("XX") => (Corrupt, "the PostgreSQL server found damage in its data"),
            _ => (Internal, "the PostgreSQL server refused a statement"),
        },
    };
    let error = Error::new(kind, message).with_code(code);
    // A retry does not help: an operator must act.
    if code == "53100" { error.with_retryable(false) } else { error }
}

/// A reply without the rows or columns that the statement returns.
#[cold]
pub(super) fn unexpected_reply() -> Error {
    Error::new(ErrorKind::Internal, "the PostgreSQL server's reply does not have the expected columns")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;

    #[test]
    fn codes_have_kinds_and_say_whether_to_retry() {
        for (code, kind, retryable) in [
            ("22003", ErrorKind::Overflow, false),
            ("40001", ErrorKind::Conflict, true),
            ("40P01", ErrorKind::Conflict, true),
            ("57014", ErrorKind::Timeout, true),
            ("55P03", ErrorKind::Busy, true),
            ("53300", ErrorKind::Busy, true),
            ("53200", ErrorKind::Busy, true),
            ("53100", ErrorKind::Unavailable, false),
            ("57P01", ErrorKind::Unavailable, true),
            ("57P03", ErrorKind::Unavailable, true),
            ("25006", ErrorKind::Unavailable, true),
            ("28P01", ErrorKind::Denied, false),
            ("42501", ErrorKind::Denied, false),
            ("3D000", ErrorKind::InvalidValue, false),
            ("42P01", ErrorKind::Corrupt, false),
            ("26000", ErrorKind::Unsupported, false),
            ("XX001", ErrorKind::Corrupt, false),
            ("99999", ErrorKind::Internal, false),
            ("", ErrorKind::Internal, false),
        ] {
            let error = of_code(code);
            assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{code}");
            assert_eq!((error.code(), error.outcome()), (Some(code), Outcome::NotApplied));
        }
    }
}
