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
    backends::{self, Operated},
    door::Door,
    failure::Failure,
    interrupt::Interrupt,
    log::Log,
    output::Answer,
    progress::Bar,
    report,
    source::counted,
    transfer::Meant,
};

/// Compare two stores, record by record
#[derive(Args)]
#[command(after_help = "\
Every record of both is read and compared to the last bit: 1 and 1.0 differ. The exit code is 3 if they differ. The digest is the
SHA-256 of all records, the same for the same records on every backend.

Examples:
  storage verify file:./data redis://localhost
  storage verify file:./data redis://localhost --sample 1000
  storage verify file:./data redis://localhost --kinds credentials,configs
  storage verify file:./data redis://localhost --output json | jq .differences")]
pub(crate) struct Verify {
    /// A store
    #[arg(value_name = "SRC")]
    source: String,
    /// The other one
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    #[command(flatten)]
    meant: Meant,
    /// Compare only so many records of SRC, chosen at random: DST is asked for them, and not read as a whole
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<NonZeroUsize>,
}

/// `verify --sample`: asks the target for records, instead of reading it.
pub(crate) struct Sampled<'v>(pub(crate) &'v Verify);

impl<B: Operated + CredentialStore + ConfigStore + UsageStore> Run<B> for Sampled<'_> {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let Verify { source, meant, sample, .. } = self.0;
        let target = door.read().await.map_err(|failure| failure.at("target"))?;
        let source = backends::source(source, door.log()).await.map_err(|failure| failure.at("source"))?;
        let interrupt = Interrupt::listen().map_err(|error| Failure::unheard(&error))?;
        let done = Arc::new(AtomicU64::new(0));
        let bar = Bar::new("reading", source.total);
        let records = interrupt.ends(bar.over(counted(source.records(), done.clone()), done));
        let options = VerifyOptions::default().with_filter(meant.filter());
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
        false => Answer::But { answer: Box::new(answer), failure: failure(compared) },
    }
}

impl Verify {
    pub(crate) async fn run(&self, log: Log) -> Result<Answer, Failure> {
        let source = backends::source(&self.source, log).await.map_err(|failure| failure.at("source"))?;
        let target = backends::source(&self.target, log).await.map_err(|failure| failure.at("target"))?;
        let interrupt = Interrupt::listen().map_err(|error| Failure::unheard(&error))?;
        let (records, others) = (source.records(), target.records());
        let total = source.total.zip(target.total).map(|(one, other)| one + other);
        let compared = compare(records, others, total, &self.meant.filter(), &interrupt).await;
        interrupt.close(source).await;
        interrupt.close(target).await;
        Ok(answer(&compared?))
    }
}

/// Compares two streams, which together have so many records, under a bar.
pub(crate) async fn compare(
    source: impl Stream<Item = gateway_storage::Result<Record>> + Send,
    target: impl Stream<Item = gateway_storage::Result<Record>> + Send,
    total: Option<u64>,
    filter: &Filter,
    interrupt: &Interrupt,
) -> Result<VerifyReport, Failure> {
    let done = Arc::new(AtomicU64::new(0));
    let source = interrupt.ends(counted(source, done.clone()));
    // Either can have much more than the other one.
    let target = interrupt.ends(counted(target, done.clone()));
    let mut bar = Bar::new("verifying", total);
    let options = VerifyOptions::default().with_filter(filter.clone());
    let report = migrate::verify(source, target, &options, |report| {
        let total = report.total();
        bar.at(done.load(Ordering::Relaxed), total.same + total.different + total.missing + total.extra);
    });
    // The other side may be the one that waits.
    interrupt.unless(report).await?.map_err(|error| match interrupt.is_set() {
        true => Failure::interrupted(),
        false => error.into(),
    })
}

/// What is said of stores that differ.
pub(crate) fn failure(report: &VerifyReport) -> Failure {
    let total = report.total();
    let counts = [(total.different, "different"), (total.missing, "missing"), (total.extra, "extra")];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    let texts: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    Failure::differences(format!("source and target are not the same: {}", texts.join(", ")))
}
