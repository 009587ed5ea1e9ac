//! `storage`: the operator's command line tool.
#![forbid(unsafe_code)]

mod archives;
mod arguments;
mod atomic_file;
mod backends;
mod bytes;
mod commands;
mod empty_store;
mod failure;
mod identity;
mod input;
mod interrupt;
mod log;
mod output;
mod progress;
mod report;
mod session;
mod source;
mod stores;
mod transfer;
mod usage_error;

use std::process::ExitCode;

use arguments::Arguments;
use failure::Failure;
use tokio::runtime::Builder;

// Only commands that move records handle SIGINT. In all others it ends the process (130 in a shell), and a
// write is atomic.
fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => return usage_error::report(&error),
    };
    let output = arguments.output;
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&Failure::system("can't start the runtime", &error)),
    };
    let code = match runtime.block_on(backends::run(arguments)) {
        Ok(answer) => output.answer(&answer),
        Err(failure) => output.fail(&failure),
    };
    // After an interrupt a thread may still resolve a host name: do not wait for it.
    runtime.shutdown_background();
    code
}
