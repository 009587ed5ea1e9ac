//! What went wrong, and whether the request was carried out.
//!
//! By code and label. The server's and the driver's texts quote keys, values and hosts, so they are dropped.

use mongodb::{
    bson::Document,
    error::{
        Error as DriverError, ErrorKind as DriverKind, NO_WRITES_PERFORMED, RETRYABLE_WRITE_ERROR,
        WriteFailure,
    },
};

use crate::{
    Error, ErrorKind, Outcome,
    backend::remote::{Effect, trust, unreachable},
};

/// What errors call it.
pub(super) const SERVER: &str = "the MongoDB server";

const TLS_NAMES: trust::Names =
    trust::Names { ca: "tlsCAFile", cert: "tlsCertificateKeyFile", key: "tlsCertificateKeyFile" };

/// An error of a request that may have been sent.
#[cold]
pub(super) fn of_request(error: &DriverError, effect: Effect) -> Error {
    let failure = of_kind(error);
    let outcome = match effect {
        Effect::Write if may_be_applied(error) => Outcome::Unknown,
        _ => Outcome::NotApplied,
    };
    failure.with_outcome(outcome)
}

/// The code of an answer that the server gave, and whether the write is done and only its acknowledgement failed.
pub(super) fn code_of(error: &DriverError) -> Option<i32> {
    match &*error.kind {
        DriverKind::Command(answer) => Some(answer.code),
        DriverKind::Write(WriteFailure::WriteError(answer)) => Some(answer.code),
        DriverKind::Write(WriteFailure::WriteConcernError(answer)) => Some(answer.code),
        _ => None,
    }
}

/// A server refused the login of a new connection, so nothing was sent on it.
pub(super) fn refuses_login(error: &DriverError) -> bool {
    matches!(&*error.kind, DriverKind::Authentication { .. }) || code_of(error) == Some(LOGIN_REFUSED)
}

const LOGIN_REFUSED: i32 = 18;

/// Two upserts of one new document at once: one of them finds the other's, and can be tried again.
pub(super) fn lost_upsert(error: &DriverError) -> bool {
    code_of(error) == Some(DUPLICATE_KEY)
}

pub(super) const DUPLICATE_KEY: i32 = 11000;

fn may_be_applied(error: &DriverError) -> bool {
    // The driver sends a write once more, under the same number, after an error that says so; what it reports is about the
    // second attempt then.
    if error.contains_label(NO_WRITES_PERFORMED) {
        return false;
    }
    if error.contains_label(RETRYABLE_WRITE_ERROR) && !was_never_connected(error) {
        return true;
    }
    match &*error.kind {
        DriverKind::Command(answer) => may_be_applied_after(answer.code),
        DriverKind::Write(WriteFailure::WriteError(answer)) => may_be_applied_after(answer.code),
        // The write is done on the primary, and may be undone by the next one.
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

/// Where both attempts failed before anything was sent, it is the error of connecting that is reported.
fn was_never_connected(error: &DriverError) -> bool {
    matches!(&*error.kind, DriverKind::Io(cause) if cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// The server was interrupted, or gave up, in the middle of it; or a router lost the server that it sent it to.
const fn may_be_applied_after(code: i32) -> bool {
    matches!(code, 6 | 7 | 50 | 64 | 89 | 91 | 189 | 262 | 9001 | 11600 | 11601 | 11602)
}

/// What is wrong with the item itself, or with who asks: so it was refused before anything was written.
const fn refuses_an_item(code: i32) -> bool {
    matches!(
        code,
        2 | 9 | 13 | 14 | 28 | 52 | 56 | 66 | 73 | 121 | 10334 | DUPLICATE_KEY | 17280 | 17419 | 17420
    )
}

/// A `writeErrors` entry of a batch.
///
/// A server has entries for items that it refused, and fails the whole command if it was interrupted. A router makes
/// entries of that: one for each item that the shard was to get, with the code of the command's failure (`noteBatchError` in
/// `batch_write_op.cpp`), although the shard may have applied some of them.
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
            "the connection to the MongoDB server was given up with others",
        ),
        DriverKind::ServerSelection { .. } => no_primary(),
        DriverKind::DnsResolve { .. } => {
            Error::new(ErrorKind::Unavailable, "the name of the MongoDB servers can't be resolved")
        }
        DriverKind::InvalidTlsConfig { .. } => {
            Error::new(ErrorKind::InvalidValue, "a certificate or key of the configuration can't be read")
        }
        DriverKind::InvalidArgument { .. } => {
            Error::new(ErrorKind::InvalidValue, "the MongoDB driver does not accept the configuration")
        }
        DriverKind::IncompatibleServer { .. } | DriverKind::SessionsNotSupported => Error::new(
            ErrorKind::Unsupported,
            "the MongoDB server is too old: version 5.0 or later is needed",
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
                "the TLS certificate of the MongoDB server is an authority's (CA:TRUE), which the driver refuses also in the file \
                 of `tlsCAFile`: make one with basicConstraints=CA:FALSE, and put that one into the file",
            )
            .with_source(tls.clone());
        }
        return trust::refusal(SERVER, tls, &TLS_NAMES);
    }
    unreachable(SERVER, Some(cause))
}

#[cold]
pub(super) fn no_primary() -> Error {
    Error::new(ErrorKind::Unavailable, "no MongoDB server that takes writes can be reached")
}

/// An answer of the server.
#[cold]
pub(super) fn of_code(code: i32) -> Error {
    use ErrorKind::{
        Busy, Conflict, Corrupt, Denied, Internal, InvalidValue, Timeout, TooLarge, Unavailable, Unsupported,
    };
    let (kind, message) = match code {
        13 => (Denied, "the MongoDB user may not do this"),
        11 | LOGIN_REFUSED => (Denied, "the MongoDB server does not accept the login"),
        8000 => (
            Denied,
            "Atlas refused it: a quota of the cluster is used up, its tier lacks the command, or the login is wrong",
        ),
        20 | 72 | 115 | 263 | 303 => (
            Unsupported,
            "the MongoDB server can't do this as it is set up; one without snapshot reads (DocumentDB, Cosmos DB) needs \
             `readConcernLevel=local`",
        ),
        24 | 46 => (Busy, "another operation holds what is to be changed"),
        50 | 262 => (Timeout, "the MongoDB server gave the operation up, after its own timeout"),
        64 => (Timeout, "too few members of the replica set acknowledged the write in time"),
        79 | 100 => (Unavailable, "the replica set can't give the write concern that is asked for"),
        112 | 251 | 244 | 225 => (Conflict, "another change came between; try again from the start"),
        DUPLICATE_KEY => (Conflict, "another one made the same document at the same time"),
        121 => (Denied, "a validator of the collection refused the document"),
        239 | 246 => (Unavailable, "the MongoDB server does not keep the snapshot any more"),
        43 => (Unavailable, "the MongoDB server does not know the cursor any more"),
        14 => (Corrupt, "a stored counter is not a number"),
        10334 | 17419 | 17420 | 17280 => (TooLarge, "the document would be larger than MongoDB's 16 MiB"),
        14031 => (Unavailable, "the MongoDB server's disk is full"),
        6 | 7 | 89 | 9001 => (Unavailable, "a MongoDB server can't reach another one"),
        91 | 11600 => (Unavailable, "the MongoDB server is shutting down"),
        189 | 10058 | 10107 | 11602 | 13435 | 13436 => {
            (Unavailable, "the MongoDB server is not the primary, or has just stopped being it")
        }
        11601 => (Unavailable, "the operation was interrupted on the MongoDB server"),
        9 | 59 => {
            (Unsupported, "the MongoDB server does not know the command: version 5.0 or later is needed")
        }
        73 => (InvalidValue, "MongoDB does not accept the database's name"),
        _ => (Internal, "the MongoDB server refused a command"),
    };
    let error = Error::new(kind, message).with_code(code.to_string());
    // Waiting does not help: an operator has to.
    if matches!(code, 14031 | 79 | 100) { error.with_retryable(false) } else { error }
}

/// The write is done, and it is not certain that it stays: `writeConcernError` of an answer.
pub(super) fn of_write_concern(answer: &Document) -> Option<Error> {
    let failure = answer.get_document("writeConcernError").ok()?;
    let code = failure.get_i32("code").unwrap_or_default();
    Some(of_code(code).with_outcome(Outcome::Unknown))
}

/// A reply of another shape than the command has.
#[cold]
pub(super) fn unexpected_reply(effect: Effect) -> Error {
    Error::new(ErrorKind::Internal, "the MongoDB server's reply is not what the command returns")
        .with_outcome(effect.when_lost())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
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
    fn what_atlas_refuses_is_not_called_a_login() {
        assert!(of_code(8000).to_string().starts_with("Atlas refused it"));
        assert!(!of_code(18).to_string().contains("Atlas"));
    }

    #[test]
    fn outcomes() {
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
        // What is not known is not taken for refused.
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
