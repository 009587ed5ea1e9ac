//! What the driver and the server report, as our errors. Their texts can quote arguments, so only codes are kept.

use std::{error::Error as _, io};

use redis::{ErrorKind as DriverKind, RedisError};

use super::tls;
use crate::{
    Error, ErrorKind, Outcome,
    backend::remote::{Effect, unreachable},
};

/// An error of a request that was sent.
#[cold]
pub(super) fn of_request(error: &RedisError, effect: Effect) -> Error {
    match error.code() {
        // The server answered, so it did not do it.
        Some(code) => of_code(code, error.detail().unwrap_or_default()),
        None => lost(error).with_outcome(effect.when_lost()),
    }
}

/// An error of opening a connection: nothing was sent.
#[cold]
pub(super) fn of_dial(error: &RedisError) -> Error {
    match (error.code(), error.kind()) {
        (Some(code), _) => of_code(code, error.detail().unwrap_or_default()),
        (None, DriverKind::AuthenticationFailed) => {
            Error::new(ErrorKind::Denied, "the Redis server does not accept the login")
        }
        (None, DriverKind::RESP3NotSupported) => {
            Error::new(ErrorKind::Unsupported, "the Redis server is too old: version 6 or later is needed")
        }
        (None, _) => lost(error),
    }
}

#[cold]
fn lost(error: &RedisError) -> Error {
    let io = error.source().and_then(|source| {
        let shared = source.downcast_ref::<std::sync::Arc<dyn std::error::Error + Send + Sync>>();
        source.downcast_ref::<io::Error>().or_else(|| shared.and_then(|shared| shared.downcast_ref()))
    });
    if let Some(tls) = io.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        return tls::of_handshake(tls);
    }
    unreachable("the Redis server", io)
}

/// The code of an error reply. What a command of a script was refused for is in the text: version 6 has its code there, and no
/// version has one for a command that the user may not run.
pub(super) fn code_of<'r>(code: &'r str, detail: &'r str) -> &'r str {
    if code != "ERR" {
        return code;
    }
    if detail.contains("The user executing the script can't") || detail.starts_with("ACL failure in script") {
        return "NOPERM";
    }
    let inner = detail.strip_prefix("Error running script").and_then(|detail| detail.split_once(": -"));
    let word = inner.and_then(|(_, reply)| reply.split_whitespace().next());
    word.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase())).unwrap_or(code)
}

/// An error reply. `detail` decides between kinds and is not kept.
#[cold]
pub(super) fn of_code(code: &str, detail: &str) -> Error {
    use ErrorKind::{Busy, Corrupt, Denied, Internal, InvalidValue, Unavailable, Unsupported};
    let code = code_of(code, detail);
    let (kind, message) = match code {
        "WRONGTYPE" => (Corrupt, "a stored record is not of the Redis type that it should be"),
        "LOADING" => (Unavailable, "the Redis server is still loading its data"),
        "READONLY" => (Unavailable, "the Redis server is a replica, which takes no writes"),
        "MASTERDOWN" => (Unavailable, "the Redis server is a replica that lost its master"),
        "CLUSTERDOWN" | "TRYAGAIN" => (Unavailable, "the Redis cluster can't serve this now"),
        "NOREPLICAS" => (Unavailable, "the Redis server has too few replicas to take a write"),
        "MISCONF" => (Unavailable, "the Redis server can't save its data and takes no writes"),
        "OOM" => (Busy, "the Redis server is out of memory"),
        "BUSY" => (Busy, "the Redis server is busy with a script"),
        "NOAUTH" => (Denied, "the Redis server wants a login"),
        "WRONGPASS" => (Denied, "the Redis server does not accept the login"),
        "NOPERM" => (Denied, "the Redis user may not do this"),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            (Unsupported, "the Redis server is part of a cluster: open it as one, with `redis-cluster://`")
        }
        "NOPROTO" => (Unsupported, "the Redis server is too old: version 6 or later is needed"),
        "ERR" if detail.contains("would overflow") => return Error::overflow().with_code(code),
        "ERR" if detail.contains("not an integer") => (Corrupt, "a stored counter is not an integer"),
        "ERR" if detail.contains("max number of clients") => {
            (Busy, "the Redis server has no connection left")
        }
        "ERR" if detail.contains("DB index") => {
            (InvalidValue, "the Redis server has no database of this number")
        }
        "ERR" if detail.contains("invalid password") || detail.contains("without any password") => {
            (Denied, "the Redis server does not accept the login")
        }
        _ => (Internal, "the Redis server refused a command"),
    };
    let error = Error::new(kind, message).with_code(code);
    // Waiting does not help: an operator has to.
    if code == "MISCONF" { error.with_retryable(false) } else { error }
}

/// A write that the server did, and that fewer replicas than asked for have.
#[cold]
pub(super) fn unconfirmed() -> Error {
    Error::new(ErrorKind::Unavailable, "too few replicas confirmed the write in time: a failover may lose it")
        .with_outcome(Outcome::Unknown)
}

/// A reply of another type than the command has.
#[cold]
pub(super) fn unexpected_reply(effect: Effect) -> Error {
    Error::new(ErrorKind::Internal, "the Redis server's reply is not what the command returns")
        .with_outcome(effect.when_lost())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (code, detail, kind, retryable) in [
            ("LOADING", "", ErrorKind::Unavailable, true),
            ("READONLY", "", ErrorKind::Unavailable, true),
            ("OOM", "", ErrorKind::Busy, true),
            ("MISCONF", "", ErrorKind::Unavailable, false),
            ("NOAUTH", "", ErrorKind::Denied, false),
            ("WRONGPASS", "", ErrorKind::Denied, false),
            ("NOPERM", "", ErrorKind::Denied, false),
            ("MOVED", "1 host:1", ErrorKind::Unsupported, false),
            ("CROSSSLOT", "", ErrorKind::Unsupported, false),
            ("BUSY", "", ErrorKind::Busy, true),
            ("WRONGTYPE", "", ErrorKind::Corrupt, false),
            ("ERR", "increment or decrement would overflow", ErrorKind::Overflow, false),
            ("ERR", "hash value is not an integer", ErrorKind::Corrupt, false),
            ("ERR", "unknown command 'SECRET'", ErrorKind::Internal, false),
            ("ERR", "Error running script (call to f_1): @user_script:1: SECRET", ErrorKind::Internal, false),
        ] {
            let error = of_code(code, detail);
            assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{code} {detail}");
            assert_eq!((error.code(), error.outcome()), (Some(code), Outcome::NotApplied));
            assert!(!format!("{error:?}").contains("SECRET"));
        }
    }

    /// As `scripting.c` of 6.2 makes them (`luaPushError`, the handler of errors, `evalGenericCommand`), and later versions.
    #[test]
    fn what_a_script_was_refused_for() {
        let of_6 = |line: &str| {
            format!("Error running script (call to f_0a1b): @user_script:45: @user_script: 45: {line} ")
        };
        for (detail, code, kind) in [
            (of_6("-READONLY You can't write against a read only replica."), "READONLY", ErrorKind::Unavailable),
            (of_6("-OOM command not allowed when used memory > 'maxmemory'."), "OOM", ErrorKind::Busy),
            (of_6("-MISCONF Errors writing to the AOF file: No space"), "MISCONF", ErrorKind::Unavailable),
            (
                of_6("The user executing the script can't run this command or subcommand"),
                "NOPERM",
                ErrorKind::Denied,
            ),
            (
                "The user executing the script can't run this command or subcommand script: 1f, on @user_script:54."
                    .to_owned(),
                "NOPERM",
                ErrorKind::Denied,
            ),
            (
                "ACL failure in script: User u has no permissions to run the 'hdel' command".to_owned(),
                "NOPERM",
                ErrorKind::Denied,
            ),
            (of_6("Script killed by user with SCRIPT KILL..."), "ERR", ErrorKind::Internal),
        ] {
            let error = of_code("ERR", &detail);
            assert_eq!((error.code(), error.kind()), (Some(code), kind), "{detail}");
            assert_eq!(error.outcome(), Outcome::NotApplied);
        }
    }
}
