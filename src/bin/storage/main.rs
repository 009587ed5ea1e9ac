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
mod nothing;
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
use failure::Failure;
use tokio::runtime::Builder;

// An interrupt needs no code but where records are moved: SIGINT ends the process, shells call that 130, and a write is whole
// or not at all.
fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => return refusal::refuse(&error),
    };
    let output = arguments.output;
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&Failure::system("can't begin", &error)),
    };
    let code = match runtime.block_on(backends::run(arguments)) {
        Ok(answer) => output.answer(&answer),
        Err(failure) => output.fail(&failure),
    };
    // What an interrupt gave up can be in a thread that looks up a name: nobody waits for it.
    runtime.shutdown_background();
    code
}
