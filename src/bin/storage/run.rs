//! Runs a command on its stores.

use crate::{
    args::{Arguments, Command},
    commands::{doctor::Check, verify::Sampled},
    dispatch::{To, on_its_backend},
    term::{failure::Failure, log::Log, output::Answer},
};

/// Runs the command on the backend that the URL names.
pub(crate) async fn run(arguments: Arguments) -> Result<Answer, Failure> {
    let log = Log(arguments.verbose);
    let (url, output) = (&*arguments.store_url()?, arguments.output);
    match &arguments.command {
        Command::Ping(command) => on_its_backend!(url, log, command, "be pinged"),
        Command::Stats(command) => on_its_backend!(url, log, command, "be counted"),
        Command::Doctor(doctor) if doctor.check => on_its_backend!(url, log, &Check, "be checked"),
        Command::Doctor(command) => on_its_backend!(url, log, command, "be examined"),
        Command::Credential(command) => {
            on_its_backend!(url, log, &To(command, output), "store credentials")
        }
        Command::Config(command) => {
            on_its_backend!(url, log, &To(command, output), "store configuration")
        }
        Command::Plan(command) => on_its_backend!(url, log, command, "apply config batches"),
        Command::Usage(command) => on_its_backend!(url, log, &To(command, output), "count usage"),
        Command::Cache(command) => on_its_backend!(url, log, command, "cache"),
        Command::Lease(command) => on_its_backend!(url, log, command, "keep leases"),
        Command::Watch(command) => on_its_backend!(url, log, &To(command, output), "be watched"),
        Command::History(command) => on_its_backend!(url, log, command, "keep a history"),
        Command::Show(command) => on_its_backend!(url, log, command, "keep a history"),
        Command::Revert(command) => on_its_backend!(url, log, command, "keep a history"),
        Command::Pull(command) => on_its_backend!(url, log, command, "have a remote"),
        Command::Push(command) => on_its_backend!(url, log, command, "have a remote"),
        Command::Schema(command) => on_its_backend!(url, log, command, "have a schema"),
        Command::Copy(command) => on_its_backend!(url, log, command, "import"),
        Command::Verify(verify) if verify.sample.is_some() => {
            on_its_backend!(url, log, &Sampled(verify), "be sampled")
        }
        Command::Verify(verify) => verify.run(url, log).await,
        #[cfg(any(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
        Command::Adopt(command) => on_its_backend!(url, log, command, "import"),
        Command::Backup(command) => on_its_backend!(url, log, command, "be backed up as a directory"),
        Command::Compact(command) => on_its_backend!(url, log, command, "be compacted"),
        Command::Export(command) => on_its_backend!(url, log, command, "export"),
        Command::Import(command) => on_its_backend!(url, log, command, "import"),
        Command::Inspect(inspect) => inspect.run().await,
        Command::Completions(completions) => Ok(completions.run(Arguments::grammar())),
        Command::Man(pages) => pages.run(Arguments::grammar()),
    }
}
