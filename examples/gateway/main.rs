//! A small LLM gateway on simulated upstreams. It loads a directory of OAuth credential files and serves
//! concurrent requests, which pick and refresh credentials, count usage, and read configuration that an
//! operator changes meanwhile. Then it reopens the store and proves that every count is exact.
//!
//!     cargo run --release --package gateway
//!     cargo run --release --package gateway -- --help
//!
//! Its modules: `options` (the command line), `load` (the files), `credential` (the pool and refreshing),
//! `traffic` (the requests), `served` (their results), `proof` (the comparison), `report` (the output).

mod credential;
mod load;
mod options;
mod proof;
mod report;
mod served;
mod traffic;

use std::{env, fmt, process::ExitCode, sync::Arc};

use gateway_storage::{
    Error, File, FileOptions, Open, Storage, UsageStore, lease::Leases, revision::Conditional,
};

use crate::{
    credential::Pool,
    options::{Command, Options},
    proof::Contents,
    traffic::Traffic,
};

/// The reason why the program stops early.
enum Failure {
    /// The arguments or the credential files are wrong.
    Usage(String),
    /// The storage failed.
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
            // With its causes. None of them contains a key, a token or a stored value.
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

/// Picks the directory and the backend. The rest is generic: for another backend, change the type here.
async fn run(options: Options) -> Result<bool, Failure> {
    let (directory, _temporary) = match options.data.clone() {
        Some(directory) => (directory, None),
        None => {
            let temporary = tempfile::tempdir()
                .map_err(|error| Failure::Usage(format!("can't make a temporary directory: {error}")))?;
            (temporary.path().join("data"), Some(temporary))
        }
    };
    gateway::<File>(FileOptions::new(directory), &options).await
}

/// Runs the gateway from start to proof. Returns true if every request was stored and every count is exact.
async fn gateway<B>(config: B::Options, options: &Options) -> Result<bool, Failure>
where
    B: Open + Conditional + Leases + UsageStore,
    B::Options: Clone,
{
    let files = load::read_folder(&options.folder)?;
    let storage = Storage::<B>::open(config.clone()).await?;
    report::print(&load::store(&storage, files).await?.to_string());

    let pool = Pool::new(&storage).await?;
    if pool.is_empty() {
        return Err(Failure::Usage("every credential is disabled".into()));
    }
    let before = Contents::read(&storage).await?;
    let traffic = Arc::new(Traffic::new(storage.clone(), pool, options, before.requests()));
    let served = tokio::select! {
        served = traffic.clone().serve() => served,
        never = report::show_progress(&traffic) => match never {},
    };
    report::clear_progress();
    let served = served?;
    report::print(&served.to_string());

    let expected = before.after(&served.counted, traffic.pool().refreshed())?;
    if let Err(error) = storage.close().await {
        // After a failed write close fails, too. Acknowledged writes must be stored all the same.
        eprintln!("closing the store: {error:?}");
    }

    let reopened = Storage::<B>::open(config).await?;
    let proof = expected.compare(&Contents::read(&reopened).await?);
    reopened.close().await?;
    report::print(&proof.to_string());
    Ok(proof.holds() && served.errors == 0)
}
