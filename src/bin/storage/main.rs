//! `storage`: the operator's command line tool.
//!
//! Imports point one way: run -> args -> commands -> stores, io -> transfer -> dispatch -> session -> backend
//! -> term.
#![forbid(unsafe_code)]
// A build without some of the backends does not use all of this.
#![cfg_attr(not(feature = "full"), allow(dead_code, unused_imports, unused_variables))]

mod args;
mod atomic_file;
mod backend;
mod commands;
mod dispatch;
mod identity;
mod io;
mod run;
mod session;
mod stores;
mod term;
mod transfer;

use std::process::ExitCode;

use args::Arguments;
use term::{failure::Failure, usage_error};
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
    let code = match runtime.block_on(run::run(arguments)) {
        Ok(answer) => output.answer(&answer),
        Err(failure) => output.fail(&failure),
    };
    // After an interrupt a thread may still resolve a host name: do not wait for it.
    runtime.shutdown_background();
    code
}
