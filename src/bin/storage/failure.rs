//! Why a command failed: for people, for programs, and as an exit code.

use std::{error::Error as _, io, path::Path};

use gateway_storage::{Error, ErrorKind, Key, Outcome, Remark, migrate::CopyReport};

use crate::{output::described, place::shown};

/// What the process ends with. `storage --help` says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Error = 1,
    /// What stands on the line is wrong, and will be wrong the next time.
    Line = 2,
    /// Two stores do not hold the same.
    Differences = 3,
    /// Some of it was done.
    Partly = 4,
    /// The store can't be opened or reached, or does not let us.
    Unreachable = 5,
    /// The backend can't do this.
    Impossible = 6,
    /// Somebody wanted it to end.
    Interrupted = 130,
}

/// A command that failed.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) kind: &'static str,
    pub(crate) outcome: &'static str,
    /// What happened, then why, and why that.
    pub(crate) chain: Vec<String>,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

/// `storage --help` says the same.
const NEW: &str = "only `set`, `increment`, `copy`, `import`, `adopt` and `pull` make a new store";

/// An error and what caused it, in one line: an address that can't be reached can be in either.
pub(crate) fn told(error: &Error) -> String {
    Failure::of(Exit::Error, error).chain.join(": ")
}

impl Failure {
    fn new(exit: Exit, kind: &'static str, message: impl Into<String>) -> Self {
        Self { exit, kind, outcome: "not_applied", chain: vec![message.into()], hint: None }
    }

    /// An error of the library.
    fn of(exit: Exit, error: &Error) -> Self {
        let mut failure = Self::new(exit, error.kind().as_str(), error.to_string());
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
            failure.hint = Some("it may have been done all the same: look before you repeat it".into());
        }
        failure
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same, with the store that it is about.
    pub(crate) fn at(mut self, which: &str) -> Self {
        self.chain[0] = format!("{which}: {}", self.chain[0]);
        self
    }

    /// The line is not one of ours.
    pub(crate) fn line(message: impl Into<String>) -> Self {
        Self::new(Exit::Line, "usage", message)
    }

    pub(crate) fn no_url() -> Self {
        Self::line("no URL says which store is meant").hint(
            "add `--url file:./data`, or set STORAGE_URL or STORAGE_URL_FILE, or name a store `default`; see `storage --help`",
        )
    }

    /// The URL names none of these backends. Only its scheme is repeated: the rest can hold a password.
    pub(crate) fn scheme(scheme: Option<&str>, known: &[&str]) -> Self {
        let plain = |scheme: &&str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
            scheme.len() < 32 && !scheme.is_empty() && scheme.bytes().all(is_plain)
        };
        let known: Vec<String> = known.iter().map(|scheme| format!("`{scheme}:`")).collect();
        match scheme.filter(plain) {
            Some(scheme) => Self::line(format!("this build has no backend for `{scheme}:`")),
            None => Self::line("the URL does not begin with its backend, as `file:./data` does"),
        }
        .hint(format!("backends of this build: {}", known.join(", ")))
    }

    /// The URL is not one of its backend.
    pub(crate) fn url(error: &Error) -> Self {
        Self::of(Exit::Line, error)
    }

    /// What should be stored can't be.
    pub(crate) fn value(error: &Error) -> Self {
        Self::of(Exit::Line, error)
    }

    /// A value's file, or stdin, can't be read.
    pub(crate) fn unreadable(what: &str, error: &io::Error) -> Self {
        let mut failure = Self::new(Exit::Line, "input", format!("{what} can't be read"));
        failure.chain.push(error.to_string());
        failure
    }

    /// A file of exported records is not one, or is damaged.
    pub(crate) fn archive(name: &str, error: &Error) -> Self {
        let mut failure = Self::of(Exit::Error, error);
        failure.chain.insert(0, format!("{name} can't be read"));
        failure
    }

    /// An exported document has parts that are no records.
    pub(crate) fn not_understood(parts: &[Remark]) -> Self {
        const NAMED: usize = 20;
        let count = parts.len();
        let mut failure = Self::new(
            Exit::Error,
            ErrorKind::Corrupt.as_str(),
            format!(
                "{count} {} of the document can't be stored; nothing was",
                if count == 1 { "part" } else { "parts" }
            ),
        );
        failure.chain.extend(parts.iter().take(NAMED).map(described));
        if count > NAMED {
            failure.chain.push(format!("and {} more", count - NAMED));
        }
        failure.hint("--leave-out imports the rest")
    }

    /// A file could not be written.
    pub(crate) fn unwritten_file(path: &Path, error: &io::Error) -> Self {
        let name = if path == "-" { "stdout".to_owned() } else { format!("`{}`", path.display()) };
        let mut failure = Self::new(Exit::Error, "output", format!("{name} can't be written"));
        failure.chain.push(error.to_string());
        failure
    }

    /// The store could not be opened.
    pub(crate) fn opening(url: &str, error: &Error) -> Self {
        // The URL names something that is no store, and never will be; but where a server says so, it may be different soon.
        let is_lines = error.kind() == ErrorKind::InvalidValue && error.code().is_none();
        let exit = if is_lines { Exit::Line } else { Exit::Unreachable };
        let failure = Self::of(exit, error);
        let failure = match shown(url) {
            Some(server) => failure.at(&server),
            None => failure,
        };
        match error.kind() {
            ErrorKind::NotFound if url.starts_with("postgres") => {
                failure.hint(format!("check the URL; {NEW}, and `schema up` makes one without a record"))
            }
            ErrorKind::NotFound => failure.hint(format!("check the URL; {NEW}")),
            ErrorKind::InvalidValue if !is_lines => {
                failure.hint("check the URL; no command makes a database on the server")
            }
            ErrorKind::Busy if url.starts_with("file:") => failure.hint(
                "stop the process that has it open (a gateway?), or wait for it: `?wait=30s` in the URL",
            ),
            ErrorKind::Busy => failure.hint("stop what has it open (a gateway?), or try again later"),
            _ => failure,
        }
    }

    /// The Go program left nothing there.
    pub(crate) fn nothing_found() -> Self {
        Self::new(Exit::Error, ErrorKind::NotFound.as_str(), "there is nothing to adopt")
            .hint("check the URL, and its prefix, database or schema")
    }

    /// What could be read is adopted; so many things could not.
    pub(crate) fn left_behind(count: usize) -> Self {
        Self::partly(match count {
            1 => "1 thing can't be understood, and stays where it is".to_owned(),
            _ => format!("{count} things can't be understood, and stay where they are"),
        })
    }

    /// Records were moved, but not all of them.
    pub(crate) fn partly(message: impl Into<String>) -> Self {
        Self { outcome: "partly_applied", ..Self::new(Exit::Partly, "partly_done", message) }
    }

    /// The same, and this is why.
    pub(crate) fn stopped(error: &Error) -> Self {
        Self { outcome: "partly_applied", ..Self::of(Exit::Partly, error) }
    }

    /// Ctrl-C, before all was done.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted", "interrupted")
    }

    /// What was copied could not be compared.
    pub(crate) fn after(mut self, report: &CopyReport) -> Self {
        let (copied, outcome) = match report.is_complete() {
            true => ("all records are copied", "applied"),
            false => ("what could be is copied", "partly_applied"),
        };
        let what = match self.exit {
            Exit::Interrupted => "the comparison was interrupted",
            _ => "could not be compared",
        };
        if self.exit == Exit::Interrupted {
            self.chain.clear();
        }
        self.chain.insert(0, format!("{copied}; {what}"));
        self.outcome = outcome;
        self.hint("`storage verify` compares two stores")
    }

    /// What would be in place of another one.
    pub(crate) fn conflicts(count: u64) -> Self {
        let message = format!("the target has {count} of the records with another value");
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), message)
            .hint("nothing was written; --on-conflict skip keeps them, --on-conflict overwrite replaces them")
    }

    /// Nobody could end it in order.
    pub(crate) fn unheard(error: &io::Error) -> Self {
        Self::system("can't listen to signals", error)
    }

    /// The system gives us too little.
    pub(crate) fn system(message: &str, error: &io::Error) -> Self {
        let mut failure = Self::new(Exit::Error, ErrorKind::Internal.as_str(), message);
        failure.chain.push(error.to_string());
        failure
    }

    /// Two stores do not hold the same.
    pub(crate) fn differences(message: impl Into<String>) -> Self {
        Self::new(Exit::Differences, "differences", message)
    }

    /// The backend has no such capability; it is told which ones have it.
    pub(crate) fn impossible(backend: &str, what: &str, backends: &[(&str, bool)]) -> Self {
        let able: Vec<String> =
            backends.iter().filter(|(_, able)| *able).map(|(name, _)| format!("`{name}`")).collect();
        let message = format!("`{backend}` cannot {what}; backends that can: {}", able.join(", "));
        Self::new(Exit::Impossible, ErrorKind::Unsupported.as_str(), message)
    }

    /// A plan would not be applied, for this reason.
    pub(crate) fn would_refuse(why: &str) -> Self {
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), format!("it would be refused: {why}"))
    }

    /// A plan is not rolled back. The keys of configurations are shown, as `config list` does it.
    pub(crate) fn changed(keys: &[Key]) -> Self {
        let names: Vec<&str> = keys.iter().map(Key::as_str).collect();
        let message = format!("changed since the plan was applied: {}", names.join(", "));
        Self::new(Exit::Error, ErrorKind::Conflict.as_str(), message)
            .hint("nothing was changed; --force puts these back, too")
    }

    /// The command did its work, and nobody can be told.
    pub(crate) fn unwritten(error: &io::Error) -> Self {
        let mut failure = Self::new(Exit::Error, "output", "it is done, but the answer can't be written");
        failure.outcome = "applied";
        failure.chain.push(error.to_string());
        failure
    }
}

/// An error of an operation on an open store.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::InvalidKey | ErrorKind::InvalidValue | ErrorKind::TooLarge => Exit::Line,
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
    fn a_line_has_the_causes_too() {
        let cause = io::Error::other("192.0.2.10:6379 is not reachable");
        let error = Error::new(ErrorKind::Unavailable, "the server can't be reached");
        let wanted = "the server can't be reached [E1]: 192.0.2.10:6379 is not reachable";
        assert_eq!(told(&error.clone().with_source(cause).with_code("E1")), wanted);
        assert_eq!(told(&error), "the server can't be reached");
    }
}
