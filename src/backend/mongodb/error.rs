//! Converts the errors of the driver and the server, and decides whether the request was applied.
//!
//! Both use codes and labels. The texts quote keys, values and hosts, so they are dropped.

use mongodb::{
    bson::Document,
    error::{
        Error as DriverError, ErrorKind as DriverKind, NO_WRITES_PERFORMED, RETRYABLE_WRITE_ERROR,
        TRANSIENT_TRANSACTION_ERROR, WriteFailure,
    },
};

use crate::{
    Error, ErrorKind, Outcome,
    backend::remote::{Effect, trust, unreachable},
};

/// The server's name in errors.
pub(super) const SERVER: &str = "the MongoDB server";

const TLS_NAMES: trust::Names =
    trust::Names { ca: "tlsCAFile", cert: "tlsCertificateKeyFile", key: "tlsCertificateKeyFile" };

/// The error of a request that may have been sent.
#[cold]
pub(super) fn of_request(error: &DriverError, effect: Effect) -> Error {
    let failure = of_kind(error);
    let outcome = match effect {
        Effect::Write if may_be_applied(error) => Outcome::Unknown,
        _ => Outcome::NotApplied,
    };
    failure.with_outcome(outcome)
}

/// The error of a statement in a transaction. Nothing is applied; the server says whether a retry can help.
#[cold]
pub(super) fn of_statement(error: &DriverError) -> Error {
    let failure = of_request(error, Effect::Read);
    if error.contains_label(TRANSIENT_TRANSACTION_ERROR) { failure.with_retryable(true) } else { failure }
}

/// The code of the server's reply, if the error is one.
pub(super) fn code_of(error: &DriverError) -> Option<i32> {
    match &*error.kind {
        DriverKind::Command(reply) => Some(reply.code),
        DriverKind::Write(WriteFailure::WriteError(reply)) => Some(reply.code),
        DriverKind::Write(WriteFailure::WriteConcernError(reply)) => Some(reply.code),
        _ => None,
    }
}

/// Whether a server refused the login of a new connection. Then nothing was sent on it.
pub(super) fn refuses_login(error: &DriverError) -> bool {
    matches!(&*error.kind, DriverKind::Authentication { .. }) || code_of(error) == Some(LOGIN_REFUSED)
}

const LOGIN_REFUSED: i32 = 18;

/// A concurrent upsert created the same document first. Then the upsert can be retried.
pub(super) const DUPLICATE_KEY: i32 = 11000;

fn may_be_applied(error: &DriverError) -> bool {
    // The driver retries a write once, under the same number, and may report the second attempt's error.
    if error.contains_label(NO_WRITES_PERFORMED) {
        return false;
    }
    if error.contains_label(RETRYABLE_WRITE_ERROR) && !was_never_connected(error) {
        return true;
    }
    match &*error.kind {
        DriverKind::Command(reply) => may_be_applied_after(reply.code),
        DriverKind::Write(WriteFailure::WriteError(reply)) => may_be_applied_after(reply.code),
        // The primary has applied the write, and the next primary may roll it back.
        DriverKind::Write(WriteFailure::WriteConcernError(_)) => true,
        DriverKind::InvalidArgument { .. }
        | DriverKind::Authentication { .. }
        | DriverKind::DnsResolve { .. }
        | DriverKind::ServerSelection { .. }
        | DriverKind::SessionsNotSupported
        | DriverKind::InvalidTlsConfig { .. }
        | DriverKind::Transaction { .. }
        | DriverKind::IncompatibleServer { .. }
        | DriverKind::Shutdown => false,
        _ => !was_never_connected(error),
    }
}

/// Whether no attempt was sent: a refused connection is reported only if both attempts failed to connect.
fn was_never_connected(error: &DriverError) -> bool {
    matches!(&*error.kind, DriverKind::Io(cause) if cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Whether the server stopped in the middle of the request, or a router lost its connection to the shard.
const fn may_be_applied_after(code: i32) -> bool {
    matches!(code, 6 | 7 | 50 | 64 | 89 | 91 | 189 | 262 | 9001 | 11600 | 11601 | 11602)
}

/// Whether the item itself or the user's rights are the cause. Then it was refused before anything was
/// written.
const fn refuses_an_item(code: i32) -> bool {
    matches!(
        code,
        2 | 9 | 13 | 14 | 28 | 52 | 56 | 66 | 73 | 121 | 10334 | DUPLICATE_KEY | 17280 | 17419 | 17420
    )
}

/// The error of one item of a batch, from its entry in `writeErrors`.
///
/// A server has entries for the items that it refused, and fails the whole command if it was interrupted. A
/// router turns such a failure into one entry for each item of that shard, with the code of the failure
/// (`noteBatchError` in `batch_write_op.cpp`), although the shard may have applied some of them.
#[cold]
pub(super) fn of_item(code: i32) -> Error {
    let outcome = if refuses_an_item(code) { Outcome::NotApplied } else { Outcome::Unknown };
    of_code(code).with_outcome(outcome)
}

#[cold]
fn of_kind(error: &DriverError) -> Error {
    if let Some(code) = code_of(error) {
        return of_code(code);
    }
    match &*error.kind {
        DriverKind::Authentication { .. } => {
            Error::new(ErrorKind::Denied, "the MongoDB server does not accept the login")
        }
        DriverKind::Io(cause) => of_io(cause),
        DriverKind::ConnectionPoolCleared { .. } => Error::new(
            ErrorKind::Unavailable,
            "the driver closed its connections to the MongoDB server after one of them failed",
        ),
        DriverKind::ServerSelection { .. } => no_primary(),
        DriverKind::DnsResolve { .. } => {
            Error::new(ErrorKind::Unavailable, "the names of the MongoDB servers can't be resolved")
        }
        DriverKind::InvalidTlsConfig { .. } => {
            Error::new(ErrorKind::InvalidValue, "a certificate or key named in the options can't be read")
        }
        DriverKind::InvalidArgument { .. } => {
            Error::new(ErrorKind::InvalidValue, "the MongoDB driver does not accept the options")
        }
        DriverKind::IncompatibleServer { .. } | DriverKind::SessionsNotSupported => Error::new(
            ErrorKind::Unsupported,
            "the MongoDB server is too old: version 5.0 or later is required",
        ),
        DriverKind::Shutdown => Error::closed(),
        _ => Error::new(ErrorKind::Internal, "the MongoDB driver failed"),
    }
}

#[cold]
fn of_io(cause: &std::io::Error) -> Error {
    if let Some(tls) = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        if trust::is_authority(tls) {
            return Error::new(
                ErrorKind::Denied,
                "the TLS certificate of the MongoDB server is a CA certificate (CA:TRUE), which the driver refuses even if it is in \
                 `tlsCAFile`: create one with basicConstraints=CA:FALSE, and use that in `tlsCAFile`",
            )
            .with_source(tls.clone());
        }
        return trust::refusal(SERVER, tls, &TLS_NAMES);
    }
    unreachable(SERVER, Some(cause))
}

#[cold]
pub(super) fn no_primary() -> Error {
    Error::new(ErrorKind::Unavailable, "no MongoDB server that accepts writes can be reached")
}

/// The error of a code in the server's reply.
#[cold]
pub(super) fn of_code(code: i32) -> Error {
    use ErrorKind::{
        Busy, Conflict, Corrupt, Denied, Internal, InvalidValue, Timeout, TooLarge, Unavailable, Unsupported,
    };
    let (kind, message) = match code {
        13 => (Denied, "the MongoDB user lacks the right to do this"),
        11 | LOGIN_REFUSED => (Denied, "the MongoDB server does not accept the login"),
        8000 => (
            Denied,
            "Atlas refused the command: a quota of the cluster is used up, its tier lacks the command, or the login is wrong",
        ),
        20 | 72 | 115 | 263 | 303 => (
            Unsupported,
            "the MongoDB server's setup does not support this; a server without snapshot reads (DocumentDB, Cosmos DB) needs \
             `readConcernLevel=local`",
        ),
        24 | 46 => (Busy, "another operation holds the lock that this one needs"),
        50 | 262 => (Timeout, "the MongoDB server stopped the operation at its time limit"),
        64 => (Timeout, "too few members of the replica set acknowledged the write in time"),
        79 | 100 => (Unavailable, "the replica set can't satisfy the write concern"),
        112 | 251 | 244 | 225 => {
            (Conflict, "a concurrent change conflicts with the transaction; retry it from the start")
        }
        DUPLICATE_KEY => (Conflict, "a concurrent operation created the same document"),
        121 => (Denied, "the document fails the collection's validation"),
        239 | 246 => (Unavailable, "the MongoDB server no longer has the snapshot"),
        43 => (Unavailable, "the MongoDB server no longer has the cursor"),
        14 => (Corrupt, "a stored counter is not a number"),
        10334 | 17419 | 17420 | 17280 => (TooLarge, "the document would exceed MongoDB's limit of 16 MiB"),
        14031 => (Unavailable, "the MongoDB server's disk is full"),
        6 | 7 | 89 | 9001 => (Unavailable, "a MongoDB server can't reach another MongoDB server"),
        91 | 11600 => (Unavailable, "the MongoDB server is shutting down"),
        189 | 10058 | 10107 | 11602 | 13435 | 13436 => {
            (Unavailable, "the MongoDB server is not the primary, or just stepped down")
        }
        11601 => (Unavailable, "the operation was interrupted on the MongoDB server"),
        9 | 59 => {
            (Unsupported, "the MongoDB server does not know the command: version 5.0 or later is required")
        }
        73 => (InvalidValue, "MongoDB does not allow the name of the database"),
        _ => (Internal, "the MongoDB server refused a command"),
    };
    let error = Error::new(kind, message).with_code(code.to_string());
    // A retry does not help: an operator has to fix it.
    if matches!(code, 14031 | 79 | 100) { error.with_retryable(false) } else { error }
}

/// The first of the `writeErrors` of a reply.
pub(super) fn of_write_error(reply: &Document) -> Option<Error> {
    let refused = reply.get_array("writeErrors").ok()?.first()?;
    let code = refused.as_document().and_then(|error| error.get_i32("code").ok()).unwrap_or_default();
    Some(of_item(code))
}

/// The `writeConcernError` of a reply: the write is applied, but a failover may roll it back.
pub(super) fn of_write_concern(reply: &Document) -> Option<Error> {
    let failure = reply.get_document("writeConcernError").ok()?;
    let code = failure.get_i32("code").unwrap_or_default();
    Some(of_code(code).with_outcome(Outcome::Unknown))
}

/// The error of a reply that lacks what the command returns.
#[cold]
pub(super) fn unexpected_reply(effect: Effect) -> Error {
    Error::new(ErrorKind::Internal, "unexpected reply from the MongoDB server")
        .with_outcome(effect.when_lost())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_kinds() {
        for (code, kind, retryable) in [
            (13, ErrorKind::Denied, false),
            (18, ErrorKind::Denied, false),
            (8000, ErrorKind::Denied, false),
            (50, ErrorKind::Timeout, true),
            (64, ErrorKind::Timeout, true),
            (100, ErrorKind::Unavailable, false),
            (112, ErrorKind::Conflict, true),
            (251, ErrorKind::Conflict, true),
            (11000, ErrorKind::Conflict, true),
            (10334, ErrorKind::TooLarge, false),
            (14031, ErrorKind::Unavailable, false),
            (10107, ErrorKind::Unavailable, true),
            (263, ErrorKind::Unsupported, false),
            (99999, ErrorKind::Internal, false),
        ] {
            let error = of_code(code);
            assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{code}");
            assert_eq!((error.code(), error.outcome()), (Some(&*code.to_string()), Outcome::NotApplied));
        }
    }

    #[test]
    fn the_code_of_atlas_is_not_only_a_refused_login() {
        assert!(of_code(8000).to_string().starts_with("Atlas refused the command"));
        assert!(!of_code(18).to_string().contains("Atlas"));
    }

    #[test]
    fn outcomes_of_driver_errors_and_codes() {
        let io =
            |kind: std::io::ErrorKind| DriverError::from(DriverKind::Io(std::sync::Arc::new(kind.into())));
        let reset = io(std::io::ErrorKind::ConnectionReset);
        let refused = io(std::io::ErrorKind::ConnectionRefused);
        for (error, effect, outcome) in [
            (&reset, Effect::Write, Outcome::Unknown),
            (&reset, Effect::Read, Outcome::NotApplied),
            (&refused, Effect::Write, Outcome::NotApplied),
        ] {
            assert_eq!(of_request(error, effect).outcome(), outcome, "{error:?}");
        }
        for (code, may_be) in [
            (2, false),
            (112, false),
            (50, true),
            (11602, true),
            (64, true),
            (6, true),
            (89, true),
            (262, true),
        ] {
            assert_eq!(may_be_applied_after(code), may_be, "{code}");
        }
        // Unknown codes do not count as a refusal.
        for (code, outcome) in [
            (2, Outcome::NotApplied),
            (14, Outcome::NotApplied),
            (11000, Outcome::NotApplied),
            (17419, Outcome::NotApplied),
            (6, Outcome::Unknown),
            (50, Outcome::Unknown),
            (112, Outcome::Unknown),
            (11602, Outcome::Unknown),
            (99999, Outcome::Unknown),
        ] {
            let error = of_item(code);
            assert_eq!((error.outcome(), error.kind()), (outcome, of_code(code).kind()), "{code}");
        }
    }
}
