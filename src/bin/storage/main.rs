//! `storage`: the operator's command.
#![forbid(unsafe_code)]

mod archives;
mod arguments;
mod aside;
mod backends;
mod bytes;
mod commands;
mod door;
mod failure;
mod input;
mod interrupt;
mod log;
mod output;
mod place;
mod progress;
mod refusal;
mod report;
mod source;
mod stores;
mod transfer;

use std::process::ExitCode;

use arguments::Arguments;
use clap::Parser;

// An interrupt needs no code but where records are moved: SIGINT ends the process, shells call that 130, and a write is whole
// or not at all.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refusal::refuse(&error),
    };
    let output = arguments.output;
    match backends::run(arguments).await {
        Ok(answer) => output.answer(&answer),
        Err(failure) => output.fail(&failure),
    }
}
