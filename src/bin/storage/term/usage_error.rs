//! Errors for an invalid command line, without what may be secret in it.

use std::{env, error::Error as _, process::ExitCode};

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use gateway_storage as storage;

use super::{failure::Failure, output::Output};

/// Prints what clap returned instead of arguments: an error, the help or the version.
pub(crate) fn report(error: &Error) -> ExitCode {
    let output = Output::of_line(env::args_os());
    match redacted(error) {
        Some(failure) => output.fail(&failure),
        None if output == Output::Human || !error.use_stderr() => {
            // A closed stdout or stderr is not an error here.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        None => output.fail(&Failure::usage(first_paragraph(error))),
    }
}

/// clap quotes the text that it rejects. Where that can be a key or part of a secret, this is the error
/// without it.
fn redacted(error: &Error) -> Option<Failure> {
    let named = |context| match error.get(context) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let argument = named(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::ValueValidation => {
            let why = error.source();
            let kind =
                why.and_then(|why| why.downcast_ref::<storage::Error>()).map(|error| error.kind().as_str());
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            let failure = Failure::usage(format!("{argument} is not valid{why}"));
            Some(Failure { kind: kind.unwrap_or(failure.kind), ..failure })
        }
        ErrorKind::TooManyValues => Some(Failure::usage(format!("{argument} takes no value"))),
        ErrorKind::InvalidSubcommand if !is_word(named(ContextKind::InvalidSubcommand)) => {
            Some(Failure::usage("unknown command").hint("`storage --help` lists them"))
        }
        ErrorKind::UnknownArgument if !is_word(argument) && argument.starts_with('-') => {
            Some(Failure::usage("unknown option").hint("put `--` before a key that begins with a dash"))
        }
        ErrorKind::UnknownArgument if !argument.starts_with('-') => {
            let hint = "quote JSON, or a key with spaces, as one argument: '{\"a\": 1}'";
            Some(Failure::usage("too many arguments for this command").hint(hint))
        }
        _ => None,
    }
}

/// Whether this is a word like `ping`, `--reveal` or `-x`, which can be printed.
fn is_word(text: &str) -> bool {
    let is_letter = |character: char| character.is_ascii_lowercase() || character == '-';
    text.len() < 16 && text.chars().all(is_letter) || text.chars().count() == 2
}

fn first_paragraph(error: &Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given".into();
    }
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let paragraph = lines.collect::<Vec<_>>().join(" ");
    paragraph.strip_prefix("error: ").map_or(paragraph.clone(), str::to_owned)
}
