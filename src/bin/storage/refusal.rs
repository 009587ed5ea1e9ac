//! What is said of a line that is not one of ours.

use std::{env, error::Error as _, process::ExitCode};

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use gateway_storage as storage;

use crate::{failure::Failure, output::Output};

/// Tells what clap found. Help and version are found, too.
pub(crate) fn refuse(error: &Error) -> ExitCode {
    let output = Output::wanted(env::args_os());
    match quietly(error) {
        Some(failure) => output.fail(&failure),
        None if output == Output::Human || !error.use_stderr() => {
            // Nobody reads it: nobody misses it.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        None => output.fail(&Failure::line(first_paragraph(error))),
    }
}

/// clap quotes what it does not understand. Where that can be a key or a part of a secret, this says it without.
fn quietly(error: &Error) -> Option<Failure> {
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
            let failure = Failure::line(format!("{argument} is not valid{why}"));
            Some(Failure { kind: kind.unwrap_or(failure.kind), ..failure })
        }
        ErrorKind::TooManyValues => Some(Failure::line(format!("{argument} takes no value"))),
        ErrorKind::InvalidSubcommand if !is_word(named(ContextKind::InvalidSubcommand)) => {
            Some(Failure::line("there is no such command").hint("`storage --help` lists them"))
        }
        ErrorKind::UnknownArgument if !is_word(argument) && argument.starts_with('-') => Some(
            Failure::line("there is no such option").hint("`--` goes before a key that begins with a dash"),
        ),
        ErrorKind::UnknownArgument if !argument.starts_with('-') => {
            let hint = "JSON, and a key with spaces, are quoted as one argument: '{\"a\": 1}'";
            Some(Failure::line("the line has more arguments than the command takes").hint(hint))
        }
        _ => None,
    }
}

/// Whether this is a word like `ping`, `--reveal` or `-x`, and so nothing to hide.
fn is_word(text: &str) -> bool {
    let is_letter = |character: char| character.is_ascii_lowercase() || character == '-';
    text.len() < 16 && text.chars().all(is_letter) || text.chars().count() == 2
}

fn first_paragraph(error: &Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "the line has no command".into();
    }
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let paragraph = lines.collect::<Vec<_>>().join(" ");
    paragraph.strip_prefix("error: ").map_or(paragraph.clone(), str::to_owned)
}
