//! Why a command failed: as text, as JSON, and as an exit code.

use std::{error::Error as _, io, path::Path, time::Duration};

use gateway_storage::{Error, ErrorKind, Key, Outcome, adopt::Remark, migrate::CopyReport};

use super::text::{described, time_left};
use crate::identity::server_of;

/// The exit codes, as listed in `storage --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Error = 1,
    /// The command line is invalid: repeating it fails again.
    Usage = 2,
    /// The two stores differ.
    Differences = 3,
    /// Some of the records were stored.
    Partial = 4,
    /// The store can't be opened or reached, or access is denied.
    Unreachable = 5,
    /// The backend does not support the command.
    Impossible = 6,
    /// Another process has the lease, or it rests.
    LeaseNotFree = 75,
    /// The lease has ended before the command that it was for.
    LeaseLost = 76,
    /// The command of `lease run` can't be started.
    NotStarted = 126,
    /// The command of `lease run` is not found.
    NoProgram = 127,
    /// Interrupted by a signal.
    Interrupted = 130,
}

/// A command that failed.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) kind: &'static str,
    pub(crate) outcome: &'static str,
    /// The backend's own code.
    pub(crate) code: Option<String>,
    /// The key of the record that the error is about.
    pub(crate) key: Option<Box<Key>>,
    /// The error, then its causes.
    pub(crate) chain: Vec<String>,
    /// What the operator can do.
    pub(crate) hint: Option<String>,
}

/// As in `storage --help`.
const NEW: &str = "only `set`, `increment`, `copy`, `import`, `adopt` and `pull` create a store";

/// An error and its causes in one line: the address of an unreachable server can be in either.
pub(crate) fn with_causes(error: &Error) -> String {
    Failure::of(Exit::Error, error).chain.join(": ")
}

impl Failure {
    fn new(exit: Exit, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            exit,
            kind,
            outcome: "not_applied",
            code: None,
            key: None,
            chain: vec![message.into()],
            hint: None,
        }
    }

    /// An error of the library.
    fn of(exit: Exit, error: &Error) -> Self {
        let mut failure = Self::new(exit, error.kind().as_str(), error.to_string());
        failure.code = error.code().map(str::to_owned);
        failure.key = error.key().cloned().map(Box::new);
        let mut source = error.source();
        while let Some(cause) = source {
            failure.chain.push(cause.to_string());
            source = cause.source();
        }
        if let Some(code) = error.code().filter(|code| !failure.chain.iter().any(|text| text.contains(code)))
        {
            failure.chain[0].push_str(&format!(" [{code}]"));
        }
        if error.outcome() == Outcome::Unknown {
            failure.outcome = "unknown";
            failure.hint = Some("the write may have been applied: check before you repeat it".into());
        }
        failure
    }

    /// Adds a cause.
    fn because(mut self, error: &io::Error) -> Self {
        self.chain.push(error.to_string());
        self
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Prefixes the store that the error is about.
    pub(crate) fn at(mut self, which: &str) -> Self {
        self.chain[0] = format!("{which}: {}", self.chain[0]);
        self
    }

    /// The command line is invalid.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    pub(crate) fn no_url() -> Self {
        Self::usage("no store is named").hint(
            "add `--url file:./data`, set STORAGE_URL or STORAGE_URL_FILE, or name a store `default`; see `storage --help`",
        )
    }

    /// The URL names no backend of this build, but perhaps one that a feature adds. Only its scheme is
    /// repeated: the rest can hold a password.
    pub(crate) fn scheme(scheme: Option<&str>, known: &[&str], feature: Option<&str>) -> Self {
        let plain = |scheme: &&str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
            scheme.len() < 32 && !scheme.is_empty() && scheme.bytes().all(is_plain)
        };
        let known: Vec<String> = known.iter().map(|scheme| format!("`{scheme}:`")).collect();
        let known = format!("backends of this build: {}", known.join(", "));
        match scheme.filter(plain) {
            Some(scheme) => Self::usage(format!("this build has no backend for `{scheme}:`")),
            None => Self::usage("the URL does not begin with its backend, as `file:./data` does"),
        }
        .hint(match feature {
            Some(feature) => format!("build it with `--features cli,{feature}`; {known}"),
            None => known,
        })
    }

    /// The URL or the value is invalid.
    pub(crate) fn invalid(error: &Error) -> Self {
        Self::of(Exit::Usage, error)
    }

    /// A value's file, or stdin, can't be read.
    pub(crate) fn unreadable(what: &str, error: &io::Error) -> Self {
        Self::new(Exit::Usage, "input", format!("{what} can't be read")).because(error)
    }

    /// An export file is damaged, or the file is not an export.
    pub(crate) fn archive(name: &str, error: &Error) -> Self {
        let mut failure = Self::of(Exit::Error, error);
        let what = match error.kind() {
            ErrorKind::Corrupt => "is damaged, or is not an export",
            _ => "can't be read",
        };
        failure.chain.insert(0, format!("{name} {what}"));
        failure
    }

    /// Parts of an exported document are not records.
    pub(crate) fn not_understood(parts: &[Remark]) -> Self {
        const NAMED: usize = 20;
        let count = parts.len();
        let mut failure = Self::new(
            Exit::Error,
            ErrorKind::Corrupt.as_str(),
            format!(
                "{count} {} of the document can't be stored; nothing was stored",
                if count == 1 { "part" } else { "parts" }
            ),
        );
        failure.chain.extend(parts.iter().take(NAMED).map(described));
        if count > NAMED {
            failure.chain.push(format!("and {} more", count - NAMED));
        }
        failure.hint("add --leave-out to import the rest")
    }

    /// A file could not be written.
    pub(crate) fn unwritten_file(path: &Path, error: &io::Error) -> Self {
        let name =
            if path.as_os_str() == "-" { "stdout".to_owned() } else { format!("`{}`", path.display()) };
        Self::new(Exit::Error, "output", format!("{name} can't be written")).because(error)
    }

    /// The store could not be opened.
    pub(crate) fn opening(url: &str, error: &Error) -> Self {
        // The URL can never name a store. If a server reports it (with a code), that may change.
        let is_usage = error.kind() == ErrorKind::InvalidValue && error.code().is_none();
        let exit = if is_usage { Exit::Usage } else { Exit::Unreachable };
        let failure = Self::of(exit, error);
        let failure = match server_of(url) {
            Some(server) => failure.at(&server),
            None => failure,
        };
        match error.kind() {
            ErrorKind::NotFound if url.starts_with("postgres") => {
                failure.hint(format!("check the URL; {NEW}, and `schema up` creates an empty one"))
            }
            ErrorKind::NotFound => failure.hint(format!("check the URL; {NEW}")),
            ErrorKind::InvalidValue if !is_usage => {
                failure.hint("check the URL; no command creates a database on the server")
            }
            ErrorKind::Busy if url.starts_with("file:") => failure.hint(
                "stop the process that has it open (a gateway?), open the store there with `shared=multi-writer`, or wait \
                 for it with `?wait=30s` in the URL",
            ),
            ErrorKind::Busy => {
                failure.hint("stop the process that has it open (a gateway?), or try again later")
            }
            _ => failure,
        }
    }

    /// The source has no legacy data.
    pub(crate) fn nothing_found() -> Self {
        Self::new(Exit::Error, ErrorKind::NotFound.as_str(), "the source has no records to adopt")
            .hint("check the URL, and its prefix, database or schema")
    }

    /// The rest of the legacy data is adopted.
    pub(crate) fn not_adopted(count: usize) -> Self {
        Self::partly(match count {
            1 => "1 entry was not understood and was not adopted".to_owned(),
            _ => format!("{count} entries were not understood and were not adopted"),
        })
    }

    /// Some records were moved.
    pub(crate) fn partly(message: impl Into<String>) -> Self {
        Self { outcome: "partly_applied", ..Self::new(Exit::Partial, "partly_done", message) }
    }

    /// Some records were moved before this error.
    pub(crate) fn stopped(error: &Error) -> Self {
        Self { outcome: "partly_applied", ..Self::of(Exit::Partial, error) }
    }

    /// Ctrl-C before the end.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted", "interrupted")
    }

    /// The lease is another's, or rests, for this time.
    pub(crate) fn lease_not_free(left: Duration) -> Self {
        let message = format!(
            "the lease is not free: it is held or rests for another {}, unless it is renewed or released",
            time_left(left)
        );
        Self::new(Exit::LeaseNotFree, ErrorKind::Busy.as_str(), message)
            .hint("`storage lease list` shows its holder; `--wait 60s` waits for it")
    }

    /// The lease was lost while the command ran.
    pub(crate) fn lease_lost(error: &Error) -> Self {
        let mut failure = Self::of(Exit::LeaseLost, error);
        failure.chain.insert(0, "the lease was lost, so the command was stopped".to_owned());
        failure.outcome = "unknown";
        failure.hint("check what the command has done; another process may have the lease by now")
    }

    /// The command of `lease run` could not be started.
    pub(crate) fn not_started(error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NoProgram,
            _ => Exit::NotStarted,
        };
        Self::new(exit, "command", "the command can't be started").because(error)
    }

    /// The copy ended, but the comparison after it did not.
    pub(crate) fn after(mut self, report: &CopyReport) -> Self {
        let (copied, outcome) = match report.is_complete() {
            true => ("all records were copied", "applied"),
            false => ("some records were copied", "partly_applied"),
        };
        let what = match self.exit {
            Exit::Interrupted => "the comparison was interrupted",
            _ => "the stores could not be compared",
        };
        if self.exit == Exit::Interrupted {
            self.chain.clear();
        }
        self.chain.insert(0, format!("{copied}; {what}"));
        self.outcome = outcome;
        self.hint("compare the stores with `storage verify`")
    }

    /// An increment that would exceed its limit.
    pub(crate) fn over_limit(total: i64, limit: i64) -> Self {
        let message = format!(
            "the counter would exceed its limit, so nothing was added: the total is {total}, the limit {limit}"
        );
        Self::new(Exit::Error, "refused", message)
    }

    /// The cache has a value that was to be stored only if there is none.
    pub(crate) fn cached() -> Self {
        let message = "the cache holds a value for this key, so nothing was stored";
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), message)
    }

    /// Config values that are missing. Their keys are not secret: `config list` prints them too.
    pub(crate) fn no_configs(keys: &[&Key]) -> Self {
        let names: Vec<String> = keys.iter().map(|key| format!("`{}`", key.as_str())).collect();
        let message = match keys {
            [_] => format!("no config has the key {}", names[0]),
            _ => format!("no configs have the keys {}", names.join(", ")),
        };
        Self::new(Exit::Error, ErrorKind::NotFound.as_str(), message)
    }

    /// Records of the source would replace other values.
    pub(crate) fn conflicts(count: u64) -> Self {
        let message = match count {
            1 => "the target has a different value for 1 record".to_owned(),
            _ => format!("the target has different values for {count} records"),
        };
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), message).hint(
            "nothing was written; --on-conflict skip keeps the target's values, overwrite replaces them",
        )
    }

    /// The operating system refuses a resource.
    pub(crate) fn system(message: &str, error: &io::Error) -> Self {
        Self::new(Exit::Error, ErrorKind::Internal.as_str(), message).because(error)
    }

    /// The store is damaged.
    pub(crate) fn damaged(message: String) -> Self {
        Self::new(Exit::Error, ErrorKind::Corrupt.as_str(), message).hint(
            "write or delete the records that can't be read; or restore the store from a backup or an export",
        )
    }

    /// The two stores differ.
    pub(crate) fn differences(message: impl Into<String>) -> Self {
        Self::new(Exit::Differences, "differences", message)
    }

    /// The backend lacks the capability; the message names those that have it.
    pub(crate) fn impossible(backend: &str, what: &str, backends: &[(&str, bool)]) -> Self {
        let able: Vec<String> =
            backends.iter().filter(|(_, able)| *able).map(|(name, _)| format!("`{name}`")).collect();
        let others = match able.is_empty() {
            true => "no backend of this build can".to_owned(),
            false => format!("backends that can: {}", able.join(", ")),
        };
        let message = format!("`{backend}` cannot {what}; {others}");
        Self::new(Exit::Impossible, ErrorKind::Unsupported.as_str(), message)
    }

    /// A dry run whose real run would be refused.
    pub(crate) fn would_refuse(why: &str) -> Self {
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), format!("the plan would be refused: {why}"))
    }

    /// A refused rollback. Config keys are not secret: `config list` prints them too.
    pub(crate) fn changed(keys: &[Key]) -> Self {
        let names: Vec<&str> = keys.iter().map(Key::as_str).collect();
        let message = format!("these values were changed since the plan was applied: {}", names.join(", "));
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), message)
            .hint("nothing was rolled back; --force also restores these")
    }

    /// The command succeeded, but its output can't be written.
    pub(crate) fn unwritten(error: &io::Error) -> Self {
        let message = "the command succeeded, but its output can't be written";
        Self { outcome: "applied", ..Self::new(Exit::Error, "output", message).because(error) }
    }
}

/// An error of an operation on an open store.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::InvalidKey | ErrorKind::InvalidValue | ErrorKind::TooLarge => Exit::Usage,
            ErrorKind::Unavailable | ErrorKind::Denied => Exit::Unreachable,
            ErrorKind::Unsupported => Exit::Impossible,
            _ => Exit::Error,
        };
        Self::of(exit, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_a_backend_that_is_not_built_names_its_feature() {
        let failure = Failure::scheme(Some("rediss"), &["file", "memory"], Some("redis"));
        assert_eq!(failure.chain, ["this build has no backend for `rediss:`"]);
        let hint = "build it with `--features cli,redis`; backends of this build: `file:`, `memory:`";
        assert_eq!(failure.hint.as_deref(), Some(hint));
    }

    #[test]
    fn an_error_is_followed_by_its_causes() {
        let cause = io::Error::other("192.0.2.10:6379 is not reachable");
        let error = Error::new(ErrorKind::Unavailable, "the server can't be reached");
        let wanted = "the server can't be reached [E1]: 192.0.2.10:6379 is not reachable";
        assert_eq!(with_causes(&error.clone().with_source(cause).with_code("E1")), wanted);
        assert_eq!(with_causes(&error), "the server can't be reached");
    }
}
