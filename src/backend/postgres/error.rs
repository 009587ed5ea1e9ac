//! What the driver and the server report, as our errors. Their texts can quote values, so only codes are kept.

use std::{
    error::Error as StdError,
    io::ErrorKind::{PermissionDenied, TimedOut},
};

use tokio_postgres::error::{DbError, Severity};

use super::{connection::After, tls};
use crate::{
    Error, ErrorKind,
    backend::remote::{Effect, trust::refusal, unreachable},
};

/// What errors call it.
pub(super) const SERVER: &str = "the PostgreSQL server";

/// An error of a request that was sent.
#[cold]
pub(super) fn of_request(error: &tokio_postgres::Error, effect: Effect) -> Error {
    match error.as_db_error() {
        // The server ends the session: what it did before it said so, nobody knows.
        Some(answer) if is_fatal(answer) => of_code(answer.code().code()).with_outcome(effect.when_lost()),
        Some(answer) => of_code(answer.code().code()),
        None => lost(error).with_outcome(effect.when_lost()),
    }
}

/// What an error means for the connection.
pub(super) fn after(error: &tokio_postgres::Error) -> After {
    let Some(answer) = error.as_db_error() else { return After::Cut };
    match answer.code().code() {
        _ if is_fatal(answer) => After::Useless,
        "25006" => After::TakesNoWrites,
        // A pooler forgets prepared statements, and a migration changes what they return.
        "26000" | "42P05" | "0A000" => After::Useless,
        _ => After::Ready,
    }
}

fn is_fatal(answer: &DbError) -> bool {
    match answer.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        None => answer.code().code().starts_with("57P"),
    }
}

/// An error of opening a connection: nothing was sent.
#[cold]
pub(super) fn of_dial(error: &tokio_postgres::Error, behind_pooler: bool) -> Error {
    if let Some(answer) = error.as_db_error() {
        return match answer.code().code() {
            // What PgBouncer says to settings that it does not know, and RDS Proxy to any.
            code @ ("08P01" | "0A000") if !behind_pooler => of_code("26000").with_code(code),
            code => of_code(code),
        };
    }
    if let Some(failed) = cause::<rustls::Error>(error) {
        return refusal(SERVER, failed, &tls::NAMES);
    }
    // The driver's kinds are private; its own words for them are not.
    match error.to_string().as_str() {
        "error performing TLS handshake" => {
            Error::new(ErrorKind::Denied, "the PostgreSQL server has no TLS, and the configuration wants it")
        }
        "authentication error" | "invalid configuration" if wants_binding(error) => Error::new(
            ErrorKind::Denied,
            "the PostgreSQL server has no channel binding, and the configuration wants it: it takes TLS and a password \
             in SCRAM (`password_encryption`), and a certificate that is not signed by Ed25519",
        ),
        "authentication error" | "invalid configuration" => {
            Error::new(ErrorKind::Denied, "the PostgreSQL server wants another login: a password, perhaps")
        }
        _ => match cause::<std::io::Error>(error) {
            // By the driver's own clock.
            Some(cause) if cause.kind() == TimedOut && cause.raw_os_error().is_none() => slow(),
            // What it says of a server that takes no writes, where one is looked for that does.
            Some(cause) if cause.kind() == PermissionDenied && cause.raw_os_error().is_none() => {
                of_code("25006")
            }
            _ => lost(error),
        },
    }
}

#[cold]
pub(super) fn slow() -> Error {
    Error::new(ErrorKind::Timeout, "the PostgreSQL server did not open a connection in time")
}

/// Whether the driver gave up since a login without channel binding is not wanted. It has only words for it.
fn wants_binding(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(|cause| cause.to_string().contains("channel binding"))
}

/// A failure to connect, with the address that was dialled.
#[cold]
pub(super) fn at(place: &str, error: Error) -> Error {
    let message = error.to_string();
    let message = match message.split_once(SERVER) {
        Some((before, after)) => format!("{before}{SERVER} at {place}{after}"),
        None => format!("{place}: {message}"),
    };
    error.with_message(message)
}

/// Of the failures to connect to several hosts, in order, the one that tells most, with what the others say.
#[cold]
pub(super) fn of_all(failures: Vec<Error>) -> Error {
    let tells = |error: &Error| match (error.kind(), error.code()) {
        (_, Some("25006")) => 1,
        (ErrorKind::Unavailable | ErrorKind::Timeout, _) => 0,
        // It answered, and waiting would change nothing.
        _ => 2,
    };
    let mut most = 0;
    for (at, error) in failures.iter().enumerate() {
        if tells(error) > tells(&failures[most]) {
            most = at;
        }
    }
    let mut message = String::new();
    for (_, error) in failures.iter().enumerate().filter(|&(at, _)| at != most) {
        let code = error.code().map(|code| format!(" [{code}]")).unwrap_or_default();
        message += &format!("{error}{code}; ");
    }
    let error = failures.into_iter().nth(most).expect("there is a host");
    message += &error.to_string();
    error.with_message(message)
}

#[cold]
fn lost(error: &tokio_postgres::Error) -> Error {
    unreachable(SERVER, cause::<std::io::Error>(error))
}

/// The cause of this type. An I/O error hands over what it wraps, and not what that wraps.
fn cause<T: StdError + 'static>(error: &tokio_postgres::Error) -> Option<&T> {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(wanted) = found.downcast_ref() {
            return Some(wanted);
        }
        let inner = found.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(wanted) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(wanted);
        }
        cause = found.source();
    }
    None
}

/// An SQLSTATE.
#[cold]
pub(super) fn of_code(code: &str) -> Error {
    use ErrorKind::{
        Busy, Conflict, Corrupt, Denied, Internal, InvalidValue, Overflow, Timeout, Unavailable, Unsupported,
    };
    let (kind, message) = match code {
        "22003" => (Overflow, "the counter would leave the range of i64"),
        "40001" | "23505" => (Conflict, "another change came between; try again from the start"),
        "40P01" => (Conflict, "two changes waited for each other; try again from the start"),
        "25P02" => (Conflict, "the transaction failed before, and was rolled back"),
        "57014" => (Timeout, "the PostgreSQL server gave the statement up: its time was over"),
        "55P03" => (Busy, "another transaction holds what is to be changed"),
        "25P03" | "25P04" => (Timeout, "the transaction was idle for too long, and was rolled back"),
        "53300" => (Busy, "the PostgreSQL server has no connection left"),
        "53100" => (Unavailable, "the PostgreSQL server's disk is full"),
        "57P03" => (Unavailable, "the PostgreSQL server is starting or shutting down"),
        "25006" => (Unavailable, "the PostgreSQL server takes no writes: it is a standby, or read-only"),
        "28P01" | "28000" => (Denied, "the PostgreSQL server does not accept the login"),
        "42501" => (Denied, "the PostgreSQL role may not do this"),
        "3D000" => (InvalidValue, "the PostgreSQL server has no database of this name"),
        "42P01" | "42703" | "3F000" => {
            (Corrupt, "the store's tables are not there, or not what they should be")
        }
        "26000" | "42P05" => {
            (Unsupported, "a pooler seems to stand before the PostgreSQL server: set `pgbouncer`")
        }
        "54000" | "54001" => (Unsupported, "a limit of the PostgreSQL server is too low for this value"),
        _ => match code.get(..2) {
            Some("53") => (Busy, "the PostgreSQL server is short of memory or another resource"),
            Some("08" | "57" | "58") => (Unavailable, "the PostgreSQL server ended the connection"),
            Some("28") => (Denied, "the PostgreSQL server does not accept the login"),
            Some("0A") => (Unsupported, "the PostgreSQL server can't do this"),
            Some("XX") => (Corrupt, "the PostgreSQL server found its own data damaged"),
            _ => (Internal, "the PostgreSQL server refused a statement"),
        },
    };
    let error = Error::new(kind, message).with_code(code);
    // Waiting does not help: an operator has to.
    if code == "53100" { error.with_retryable(false) } else { error }
}

/// A reply of another shape than the statement has.
#[cold]
pub(super) fn unexpected_reply() -> Error {
    Error::new(ErrorKind::Internal, "the PostgreSQL server's reply is not what the statement returns")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;

    #[test]
    fn codes() {
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
