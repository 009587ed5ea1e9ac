//! An LLM gateway in small, on simulated upstreams: it loads a folder of OAuth credential files, serves concurrent
//! requests that pick credentials, refresh some, count usage and read live configuration while an operator changes
//! it, then reopens the store and proves that every count is exact.
//!
//!     cargo run --release --package gateway
//!     cargo run --release --package gateway -- --help
//!
//! Read on in `options` (the command line), `load` (the folder), `credential` (the pool and refreshing), `traffic`
//! (the requests), `served` (what they did), `truth` (the proof), `report` (what is shown).

mod credential;
mod load;
mod options;
mod report;
mod served;
mod traffic;
mod truth;

use std::{env, fmt, process::ExitCode, sync::Arc};

use gateway_storage::{ConfigStore, CredentialStore, Error, File, FileConfig, Open, Storage, UsageStore};

use crate::{
    credential::Pool,
    options::{Command, Options},
    traffic::Traffic,
    truth::Truth,
};

/// Why the program stops early.
enum Failure {
    /// It was asked for something that can't be done.
    Usage(String),
    /// The storage said no.
    Storage(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Storage(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            // With its causes. None of them holds a key, a token or a stored value.
            Self::Storage(error) => write!(f, "{error:?}"),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match options::parse(env::args_os().skip(1)) {
        Ok(Command::Help) => {
            report::print(options::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Run(options)) => run(options).await,
        Err(message) => Err(Failure::Usage(format!("{message}; see --help"))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// Picks the place and the backend. The rest of the program is generic: another backend is another type here.
async fn run(options: Options) -> Result<bool, Failure> {
    let (directory, _temporary) = match options.data.clone() {
        Some(directory) => (directory, None),
        None => {
            let temporary = tempfile::tempdir()
                .map_err(|error| Failure::Usage(format!("can't make a temporary directory: {error}")))?;
            (temporary.path().join("data"), Some(temporary))
        }
    };
    gateway::<File>(FileConfig::new(directory), &options).await
}

/// The whole life of a gateway. Says whether every request was stored and every count is exact.
async fn gateway<B>(config: B::Config, options: &Options) -> Result<bool, Failure>
where
    B: Open + CredentialStore + ConfigStore + UsageStore,
    B::Config: Clone,
{
    let files = load::read_folder(&options.folder)?;
    let storage = Storage::<B>::open(config.clone()).await?;
    report::print(&load::store(&storage, files).await?.to_string());

    let pool = Pool::new(&storage).await?;
    if pool.is_empty() {
        return Err(Failure::Usage("every credential is disabled: there is none to serve with".into()));
    }
    let before = Truth::read(&storage).await?;
    let traffic = Arc::new(Traffic::new(storage.clone(), pool, options, before.requests()));
    let served = tokio::select! {
        served = traffic.clone().serve() => served,
        never = report::show_progress(&traffic) => match never {},
    };
    report::clear_progress();
    let served = served?;
    report::print(&served.to_string());

    let expected = before.after(&served.counted, traffic.pool().refreshed().await)?;
    if let Err(error) = storage.close().await {
        // A store that failed a write says so again. What it promised must be there all the same.
        eprintln!("closing the store: {error:?}");
    }

    let reopened = Storage::<B>::open(config).await?;
    let proof = expected.compare(&Truth::read(&reopened).await?);
    reopened.close().await?;
    report::print(&proof.to_string());
    Ok(proof.holds() && served.errors == 0)
}
