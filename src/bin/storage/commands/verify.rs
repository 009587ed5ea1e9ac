//! `storage verify`.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Args;
use futures_util::Stream;
use gateway_storage::{
    ConfigStore, CredentialStore, Record, UsageStore,
    migrate::{self, Filter, VerifyOptions, VerifyReport},
};

use super::Run;
use crate::{
    backends::{self, CliBackend},
    failure::Failure,
    interrupt::Interrupt,
    log::Log,
    output::Answer,
    progress::Bar,
    report,
    session::Session,
    source::counted,
    transfer::RecordFilter,
};

/// Compare two stores record by record
#[derive(Args)]
#[command(after_help = "\
Every record of both stores is read and compared exactly: 1 and 1.0 differ. The exit code is 3 if
the stores differ. The digest is the SHA-256 of all records; it is the same on every backend.

Examples:
  storage verify file:./data redis://localhost
  storage verify file:./data redis://localhost --sample 1000
  storage verify file:./data redis://localhost --kinds credentials,configs
  storage verify file:./data redis://localhost --output json | jq .differences")]
pub(crate) struct Verify {
    /// The first store
    #[arg(value_name = "SRC")]
    source: String,
    /// The second store
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    #[command(flatten)]
    filter: RecordFilter,
    /// Compare N random records of SRC; reads only these from DST
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<NonZeroUsize>,
}

/// `verify --sample`: gets single records from the target instead of exporting it.
pub(crate) struct Sampled<'v>(pub(crate) &'v Verify);

impl<B: CliBackend + CredentialStore + ConfigStore + UsageStore> Run<B> for Sampled<'_> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let Verify { source, filter, sample, .. } = self.0;
        let target = session.read().await.map_err(|failure| failure.at("target"))?;
        let source = backends::source(source, session.log()).await.map_err(|failure| failure.at("source"))?;
        let interrupt = Interrupt::listen().map_err(|error| Failure::no_signals(&error))?;
        let done = Arc::new(AtomicU64::new(0));
        let bar = Bar::new("reading", source.total);
        let records = interrupt.interruptible(bar.over(counted(source.records(), done.clone()), done));
        let options = VerifyOptions::default().with_filter(filter.build());
        let count = sample.map_or(usize::MAX, NonZeroUsize::get);
        let compared = migrate::verify_sample(records, target, count, &options);
        let compared = interrupt.unless(compared).await;
        interrupt.close(source).await;
        match compared? {
            Ok(compared) => Ok(answer(&compared)),
            Err(_) if interrupt.is_set() => Err(Failure::interrupted()),
            Err(error) => Err(error.into()),
        }
    }
}

fn answer(compared: &VerifyReport) -> Answer {
    let (lines, json) = report::compared(compared);
    let answer = Answer::Lines { lines, json };
    match compared.is_same() {
        true => answer,
        false => Answer::WithFailure { answer: Box::new(answer), failure: failure(compared) },
    }
}

impl Verify {
    pub(crate) async fn run(&self, log: Log) -> Result<Answer, Failure> {
        let source = backends::source(&self.source, log).await.map_err(|failure| failure.at("source"))?;
        let target = backends::source(&self.target, log).await.map_err(|failure| failure.at("target"))?;
        let interrupt = Interrupt::listen().map_err(|error| Failure::no_signals(&error))?;
        let (records, others) = (source.records(), target.records());
        let total = source.total.zip(target.total).map(|(one, other)| one + other);
        let compared = compare(records, others, total, &self.filter.build(), &interrupt).await;
        interrupt.close(source).await;
        interrupt.close(target).await;
        Ok(answer(&compared?))
    }
}

/// Compares two streams under a progress bar. `total` is the number of records in both.
pub(crate) async fn compare(
    source: impl Stream<Item = gateway_storage::Result<Record>> + Send,
    target: impl Stream<Item = gateway_storage::Result<Record>> + Send,
    total: Option<u64>,
    filter: &Filter,
    interrupt: &Interrupt,
) -> Result<VerifyReport, Failure> {
    let done = Arc::new(AtomicU64::new(0));
    let source = interrupt.interruptible(counted(source, done.clone()));
    // Both count, because either can be much longer than the other.
    let target = interrupt.interruptible(counted(target, done.clone()));
    let mut bar = Bar::new("verifying", total);
    let options = VerifyOptions::default().with_filter(filter.clone());
    let report = migrate::verify(source, target, &options, |report| {
        let total = report.total();
        bar.at(done.load(Ordering::Relaxed), total.same + total.different + total.missing + total.extra);
    });
    // Not only the streams: the comparison may wait for the other one.
    interrupt.unless(report).await?.map_err(|error| match interrupt.is_set() {
        true => Failure::interrupted(),
        false => error.into(),
    })
}

/// The failure for stores that differ.
pub(crate) fn failure(report: &VerifyReport) -> Failure {
    let total = report.total();
    let counts = [(total.different, "different"), (total.missing, "missing"), (total.extra, "extra")];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let texts: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    Failure::differences(format!("source and target differ: {}", texts.join(", ")))
}
