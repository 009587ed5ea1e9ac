//! What a command prints: text or JSON.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufWriter, IsTerminal, Write, stderr, stdout},
    process::ExitCode,
};

use clap::ValueEnum;
use gateway_storage::{Credential, Key, UsageRecord};
use serde::Serialize;
use serde_json::{Value, json};

use super::{failure::Failure, text::printable};

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Human,
    Json,
}

/// The result of a command.
pub(crate) enum Answer {
    /// Success without output; `{ "ok": true }` as JSON.
    Done,
    /// A JSON document.
    Document(Value),
    /// A credential without its values.
    Redacted(Credential),
    /// Keys, one per line.
    Keys(Vec<Key>),
    /// The counters of one record, one per line.
    Counters(UsageRecord),
    /// A counter's new total.
    Total(i64),
    /// Bytes, unchanged.
    Bytes(Vec<u8>),
    /// Lines of text, or a JSON document.
    Lines { lines: Vec<String>, json: Value },
    /// A table, or a JSON document.
    Report { rows: Vec<(String, String)>, json: Value },
    /// The output is on stdout already.
    AlreadyWritten,
    /// Another command wrote its output and ended with this exit code.
    Exited(u8),
    /// Output of a command that failed or did only part of its work.
    WithFailure { answer: Box<Answer>, failure: Failure },
}

impl Output {
    /// The format that an unparsable command line asks for.
    pub(crate) fn of_line(line: impl Iterator<Item = OsString>) -> Self {
        let line: Vec<OsString> = line.take_while(|word| word != "--").collect();
        let asks = |words: &[OsString]| words == [OsStr::new("--output"), OsStr::new("json")];
        let is_json = line.iter().any(|word| word == "--output=json") || line.windows(2).any(asks);
        if is_json { Self::Json } else { Self::Human }
    }

    /// Writes the answer.
    pub(crate) fn answer(self, answer: &Answer) -> ExitCode {
        let mut out = BufWriter::new(stdout().lock());
        let written = match self {
            Self::Human => answer.human(&mut out),
            Self::Json => answer.json(&mut out),
        };
        match written.and_then(|()| out.flush()) {
            Ok(()) => {}
            // The reader closed the pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return self.fail(&Failure::unwritten(&error)),
        }
        if self == Self::Human && matches!(answer, Answer::Redacted(_)) && stdout().is_terminal() {
            say("note: values are hidden; --reveal shows them");
        }
        match answer {
            Answer::WithFailure { failure, .. } => self.fail(failure),
            Answer::Exited(code) => ExitCode::from(*code),
            _ => ExitCode::SUCCESS,
        }
    }

    /// Writes an error.
    pub(crate) fn fail(self, failure: &Failure) -> ExitCode {
        match self {
            Self::Human => {
                say(&format!("error: {}", failure.chain.join("\n  caused by: ")));
                if let Some(key) = &failure.key {
                    say(&format!("  key: {}", key.as_str()));
                }
                if let Some(hint) = &failure.hint {
                    say(&format!("  hint: {hint}"));
                }
            }
            Self::Json => {
                let Failure { kind, outcome, code, key, chain, hint, .. } = failure;
                let message = chain.join(": ");
                let mut error = json!({ "kind": kind, "message": message, "outcome": outcome, "hint": hint });
                if let Some(code) = code {
                    error["code"] = json!(code);
                }
                if let Some(key) = key {
                    error["key"] = json!(key.as_str());
                }
                say(&json!({ "error": error }).to_string());
            }
        }
        ExitCode::from(failure.exit as u8)
    }
}

/// Writes a line to stderr, without the panic of `eprintln!` if it is closed.
pub(crate) fn say(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

impl Answer {
    /// A table.
    pub(crate) fn report(rows: Vec<(String, String)>, json: Value) -> Self {
        Self::Report { rows, json }
    }

    /// The answer of a command that failed, unless there is no failure.
    pub(crate) fn with_failure(self, failure: Option<Failure>) -> Self {
        match failure {
            Some(failure) => Self::WithFailure { answer: Box::new(self), failure },
            None => self,
        }
    }

    /// The lines and the JSON, if the answer has lines.
    pub(crate) fn lines(&mut self) -> Option<(&mut Vec<String>, &mut Value)> {
        match self {
            Self::Lines { lines, json } => Some((lines, json)),
            Self::WithFailure { answer, .. } => answer.lines(),
            _ => None,
        }
    }

    /// Adds a line to the text.
    pub(crate) fn and_line(mut self, line: String) -> Self {
        if let Some((lines, _)) = self.lines() {
            lines.push(line);
        }
        self
    }

    /// Adds a field to the JSON.
    pub(crate) fn and_json(mut self, name: &str, value: Value) -> Self {
        if let Some((_, json)) = self.lines() {
            json[name] = value;
        }
        self
    }

    fn human(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Done | Self::AlreadyWritten | Self::Exited(_) => Ok(()),
            Self::Document(document) => writeln!(out, "{}", printable(&format!("{document:#}"))),
            Self::Redacted(credential) => {
                let lines = credential.redacted().to_string();
                lines.lines().try_for_each(|line| writeln!(out, "{}", printable(line)))
            }
            Self::Keys(keys) => keys.iter().try_for_each(|key| writeln!(out, "{}", key.as_str())),
            Self::Counters(record) => {
                record.iter().try_for_each(|(field, count)| writeln!(out, "{}\t{count}", field.as_str()))
            }
            Self::Total(total) => writeln!(out, "{total}"),
            Self::Bytes(bytes) => out.write_all(bytes),
            Self::Lines { lines, .. } => lines.iter().try_for_each(|line| writeln!(out, "{line}")),
            Self::Report { rows, .. } => {
                let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
                rows.iter().try_for_each(|(name, text)| writeln!(out, "{name:width$}  {text}"))
            }
            Self::WithFailure { answer, .. } => answer.human(out),
        }
    }

    fn json(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::AlreadyWritten | Self::Exited(_) => Ok(()),
            Self::Done => document(out, &json!({ "ok": true })),
            Self::Document(json) | Self::Lines { json, .. } | Self::Report { json, .. } => {
                document(out, json)
            }
            Self::Redacted(credential) => document(out, &credential.redacted()),
            Self::Keys(keys) => document(out, keys),
            Self::Counters(record) => document(out, record),
            Self::Total(total) => document(out, &json!({ "total": total })),
            Self::Bytes(bytes) => document(out, &bytes_as_json(bytes)),
            Self::WithFailure { answer, .. } => answer.json(out),
        }
    }
}

fn document(out: &mut impl Write, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, document)?;
    writeln!(out)
}

fn bytes_as_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> (Vec<u8>, String) {
        let answer = Answer::Bytes(bytes.to_vec());
        let (mut human, mut json) = (Vec::new(), Vec::new());
        answer.human(&mut human).unwrap();
        answer.json(&mut json).unwrap();
        (human, String::from_utf8(json).unwrap())
    }

    #[test]
    fn bytes_are_unchanged_in_text_and_labelled_in_json() {
        assert_eq!(written(b"a\n\0"), (b"a\n\0".to_vec(), "{\"text\":\"a\\n\\u0000\"}\n".into()));
        assert_eq!(written(b"\xff\x00"), (b"\xff\x00".to_vec(), "{\"hex\":\"ff00\"}\n".into()));
    }
}
