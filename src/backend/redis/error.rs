//! Errors of the driver and the server as errors of this crate. Their texts can quote arguments: only codes
//! are kept.

use std::{error::Error as _, io};

use redis::{ErrorKind as DriverKind, RedisError, ServerError};

use super::tls;
use crate::{
    Error, ErrorKind, Outcome,
    backend::remote::{Effect, unreachable},
};

/// How errors name a server whose address does not matter.
pub(super) const SERVER: &str = "the Redis server";

/// The error of a request that was sent.
#[cold]
pub(super) fn of_request(error: &RedisError, effect: Effect) -> Error {
    match error.code() {
        // The server replied with an error, so it did not apply the request.
        Some(code) => of_code(code, error.detail().unwrap_or_default()),
        None => lost(error, SERVER).with_outcome(effect.when_lost()),
    }
}

/// The error of a request while a connection is being opened. `server` is how the error names the server.
#[cold]
pub(super) fn of_dial(error: &RedisError, server: &str) -> Error {
    match error.code() {
        Some(code) => refused(server, code, error.detail().unwrap_or_default()),
        None => lost(error, server),
    }
}

/// The error of HELLO, which carries the login, or of SELECT. `server` is how the error names the server.
#[cold]
pub(super) fn of_handshake(error: &RedisError, server: &str) -> Error {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    match (error.code(), error.kind()) {
        (None, DriverKind::RESP3NotSupported) => without_hello(server),
        (Some("NOPROTO"), _) => without_hello(server).with_code("NOPROTO"),
        // Each proxy has its own text. An error of SELECT has the driver's code and contains `select`.
        (Some("ERR"), _)
            if detail.contains("hello")
                || ["unknown", "unsupported", "unimplemented", "not supported"]
                    .iter()
                    .any(|word| detail.starts_with(word) && !detail.contains("select")) =>
        {
            without_hello(server).with_code("ERR")
        }
        (None, _) if io_cause(error).is_some_and(is_end) => {
            let message = format!(
                "{server} closed the connection before it answered HELLO: it may require TLS (`rediss`), or be a proxy or \
                 a server without RESP3, which Redis supports since version 6"
            );
            Error::new(ErrorKind::Unavailable, message)
        }
        // Without the code NOPERM, which lets a read-only user open a store: this user gets no connection.
        (Some(code), _) if code_of(code, error.detail().unwrap_or_default()) == "NOPERM" => {
            forbidden(server, error.detail().unwrap_or_default())
        }
        _ => of_dial(error, server),
    }
}

/// The error of CLIENT TRACKING. `server` is how the error names the server.
#[cold]
pub(super) fn of_tracking(error: &RedisError, server: &str) -> Error {
    match error.code().map(|code| code_of(code, error.detail().unwrap_or_default())) {
        Some("ERR") => {
            let message = format!(
                "{server}, or a proxy in front of it, does not support CLIENT TRACKING or has renamed it: a watch \
                 requires it, and Redis has it since version 6"
            );
            Error::new(ErrorKind::Unsupported, message).with_code("ERR")
        }
        _ => of_dial(error, server),
    }
}

#[cold]
fn without_hello(server: &str) -> Error {
    let message = format!(
        "{server}, or a proxy in front of it, does not support HELLO or has renamed it: RESP3 is required, which Redis \
         supports since version 6"
    );
    Error::new(ErrorKind::Unsupported, message)
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn io_cause(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    let shared = source.downcast_ref::<std::sync::Arc<dyn std::error::Error + Send + Sync>>();
    source.downcast_ref::<io::Error>().or_else(|| shared.and_then(|shared| shared.downcast_ref()))
}

#[cold]
fn lost(error: &RedisError, server: &str) -> Error {
    let io = io_cause(error);
    match io.and_then(tls::cause) {
        Some(tls) => tls::refusal(server, tls),
        None => unreachable(server, io),
    }
}

/// The code of an error reply. For a command in a script and for EXEC the reason is in the text: version 6
/// has the code there, and no version has a code for a command in a script that the user may not run.
pub(super) fn code_of<'r>(code: &'r str, detail: &'r str) -> &'r str {
    let aborted = detail.strip_prefix("Transaction discarded because of: ").filter(|_| code == "EXECABORT");
    if code != "ERR" && aborted.is_none() {
        return code;
    }
    // The last one is what the driver keeps of an error of SELECT.
    let marks = ["The user executing the script can't", "ACL failure in script", "has no permissions to run"];
    if marks.iter().any(|mark| detail.contains(mark)) {
        return "NOPERM";
    }
    let inner = detail.strip_prefix("Error running script").and_then(|detail| detail.split_once(": -"));
    let word = inner.map(|(_, reply)| reply).or(aborted).and_then(|reply| reply.split_whitespace().next());
    word.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase())).unwrap_or(code)
}

/// The error for an error reply. `detail` selects the kind and is not kept.
#[cold]
pub(super) fn of_code(code: &str, detail: &str) -> Error {
    refused(SERVER, code, detail)
}

/// The error for an error reply.
#[cold]
pub(super) fn of_reply(reply: &ServerError) -> Error {
    of_code(reply.code(), reply.details().unwrap_or_default())
}

/// As [`of_code`]. `server` is how the error names the server.
#[cold]
fn refused(server: &str, code: &str, detail: &str) -> Error {
    use ErrorKind::{Busy, Corrupt, Denied, Internal, InvalidValue, Unavailable, Unsupported};
    let code = code_of(code, detail);
    let (kind, message) = match code {
        "WRONGTYPE" => (Corrupt, "a stored record has the wrong Redis type"),
        "LOADING" => (Unavailable, "the Redis server is still loading its data"),
        "READONLY" => (Unavailable, "the Redis server is a replica and accepts no writes"),
        "MASTERDOWN" => (Unavailable, "the Redis server is a replica that lost its master"),
        "CLUSTERDOWN" | "TRYAGAIN" => (Unavailable, "the Redis cluster can't serve this now"),
        "NOREPLICAS" => (Unavailable, "the Redis server has too few replicas to accept a write"),
        "MISCONF" => (Unavailable, "the Redis server can't save its data and accepts no writes"),
        "OOM" => (Busy, "the Redis server is out of memory"),
        "BUSY" => (Busy, "the Redis server is busy with a script"),
        "NOAUTH" => (Denied, "the Redis server requires authentication"),
        "WRONGPASS" => (Denied, "the Redis server rejected the username or password"),
        "DENIED" => (
            Denied,
            "the Redis server is in protected mode and only accepts connections from its own machine",
        ),
        "NOPERM" => return forbidden(server, detail).with_code(code),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            (Unsupported, "the Redis server is part of a cluster: open it as one, with `redis-cluster://`")
        }
        "ERR" if detail.contains("would overflow") => return Error::overflow().with_code(code),
        "ERR" if detail.contains("not an integer") => (Corrupt, "a stored counter is not an integer"),
        "ERR" if detail.contains("max number of clients") => {
            (Busy, "the Redis server has reached its connection limit (`maxclients`)")
        }
        "ERR" if detail.contains("DB index") => {
            (InvalidValue, "the Redis server has no database with this number")
        }
        "ERR" if detail.contains("invalid password") || detail.contains("without any password") => {
            (Denied, "the Redis server rejected the username or password")
        }
        _ => (Internal, "the Redis server refused a command"),
    };
    let error = match message.strip_prefix(SERVER).filter(|_| server != SERVER) {
        Some(rest) => Error::new(kind, [server, rest].concat()),
        None => Error::new(kind, message),
    };
    let error = error.with_code(code);
    // Retrying does not help: an operator must act.
    if code == "MISCONF" { error.with_retryable(false) } else { error }
}

/// The error for a missing permission. The command's name is not secret, and the operator needs it.
#[cold]
fn forbidden(server: &str, detail: &str) -> Error {
    let command =
        detail.split_once("run the '").and_then(|(_, rest)| rest.split_once('\'')).map(|(name, _)| name);
    let is_name = |name: &&str| {
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"|-_.".contains(&byte);
        (1..64).contains(&name.len()) && name.bytes().all(letters)
    };
    let message = match command.filter(is_name) {
        Some(name) => {
            let name = name.to_ascii_lowercase();
            let group = if name == "hello" { ", of `+@connection`" } else { "" };
            format!("the user may not run `{name}` on {server}: allow it (`+{name}`{group})")
        }
        None if detail.contains(" key") => {
            format!(
                "the user may not access a key of this store on {server}: allow the store's prefix (`~PREFIX*`)"
            )
        }
        None => format!("the user may not do this on {server}"),
    };
    Error::new(ErrorKind::Denied, message)
}

/// The server applied the write, but fewer replicas than required confirmed it.
#[cold]
pub(super) fn unconfirmed() -> Error {
    let message = "too few replicas confirmed the write within `wait_timeout`: a failover may lose it";
    Error::new(ErrorKind::Unavailable, message).with_outcome(Outcome::Unknown)
}

/// A reply of a type that the command does not return.
#[cold]
pub(super) fn unexpected_reply(effect: Effect) -> Error {
    Error::new(ErrorKind::Internal, "the Redis server sent a reply of an unexpected type")
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

    #[test]
    fn a_command_that_is_not_allowed_is_named() {
        for (detail, message) in [
            ("User app has no permissions to run the 'config|get' command", "may not run `config|get`"),
            (
                "this user has no permissions to run the 'info' command or its subcommand",
                "may not run `info`",
            ),
            ("User app has no permissions to run the 'hello' command", "`+hello`, of `+@connection`"),
            (
                "ACL failure in script: User u has no permissions to run the 'hdel' command",
                "may not run `hdel`",
            ),
            ("No permissions to access a key", "may not access a key of this store"),
            ("this user has no permissions to run the 'SEC RET' command", "may not do this"),
            ("SECRET", "may not do this"),
        ] {
            let error = of_code("NOPERM", detail);
            assert!(error.to_string().contains(message), "{error}");
            assert!(!error.to_string().contains("RET"), "{error}");
            assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("NOPERM")));
        }
    }

    /// With the texts of Redis 6 and 7, Envoy, Codis and others.
    #[test]
    fn a_server_without_hello_is_unsupported() {
        let handshake = |line: &str| {
            let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
            let redis::Value::ServerError(error) = reply else { panic!("{line}") };
            of_handshake(&error.into(), "the Redis server at h:1")
        };
        for line in [
            "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'SECRET' ",
            "ERR unknown command `HELLO`, with args beginning with: `3`, `SECRET`, ",
            "ERR unsupported command 'hello'",
            "ERR handle request, command 'HELLO' is not allowed",
            "ERR unknown command",
            "NOPROTO unsupported protocol version",
        ] {
            let error = handshake(line);
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{line}: {error}");
            assert!(error.to_string().contains("does not support HELLO"), "{error}");
            assert!(!format!("{error:?}").contains("SECRET"));
        }
        for (line, kind, message) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                ErrorKind::Denied,
                "rejected the username or password",
            ),
            (
                "NOAUTH HELLO must be called with the client already authenticated",
                ErrorKind::Denied,
                "requires authentication",
            ),
            ("NOPERM User u has no permissions to run the 'hello' command", ErrorKind::Denied, "run `hello`"),
            ("ERR max number of clients reached", ErrorKind::Busy, "connection limit"),
            ("DENIED Redis is running in protected mode", ErrorKind::Denied, "protected mode"),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Unavailable, "loading"),
        ] {
            let error = handshake(line);
            assert_eq!(error.kind(), kind, "{line}: {error}");
            assert!(error.to_string().contains(message) && error.to_string().contains("at h:1"), "{error}");
        }
    }

    #[test]
    fn the_reason_of_an_aborted_transaction_is_found() {
        for (reason, code) in [
            ("User u has no permissions to run the 'exec' command", "NOPERM"),
            ("OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
            ("READONLY You can't write against a read only replica.", "READONLY"),
            ("previous errors", "EXECABORT"),
        ] {
            let error = of_code("EXECABORT", &format!("Transaction discarded because of: {reason}"));
            assert_eq!((error.code(), error.outcome()), (Some(code), Outcome::NotApplied), "{reason}");
        }
    }

    /// With the texts of `scripting.c` in 6.2 (`luaPushError`, the error handler, `evalGenericCommand`) and
    /// later.
    #[test]
    fn the_code_of_a_command_in_a_script_is_found() {
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
