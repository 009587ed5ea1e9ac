//! `storage verify`.

use std::{
    num::NonZeroUsize,
    sync::{Arc, atomic::AtomicU64},
};

use clap::Args;
use gateway_storage::{
    ConfigStore, CredentialStore, UsageStore,
    migrate::{self, VerifyOptions, VerifyReport},
};

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::{
    stores,
    term::{interrupt::Interrupt, log::Log, progress::Bar, report},
    transfer::{
        comparison::{compare, failure},
        filter::RecordFilter,
        source::{self, Source, counted},
    },
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
    /// Compare only N random records of SRC with those of DST
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<NonZeroUsize>,
}

/// `verify --sample`: gets single records from the target instead of exporting it.
pub(crate) struct Sampled<'v>(pub(crate) &'v Verify);

impl<B: CliBackend + CredentialStore + ConfigStore + UsageStore> Run<B> for Sampled<'_> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let Verify { source, filter, sample, .. } = self.0;
        let target = session.read().await.map_err(|failure| failure.at("target"))?;
        let source = open_source(source, session.log).await?;
        let interrupt = Interrupt::listen()?;
        let done = Arc::new(AtomicU64::new(0));
        let bar = Bar::new("reading", source.total);
        let records = interrupt.interruptible(bar.over(counted(source.records(), done.clone()), done));
        let options = VerifyOptions::default().with_filter(filter.build());
        let count = sample.map_or(usize::MAX, NonZeroUsize::get);
        let compared = migrate::verify_sample(records, target, count, &options);
        let compared = interrupt.unless(compared).await;
        let _ = interrupt.unless(source.close()).await;
        match compared? {
            Ok(compared) => Ok(answer(&compared)),
            Err(_) if interrupt.is_set() => Err(Failure::interrupted()),
            Err(error) => Err(error.into()),
        }
    }
}

fn answer(compared: &VerifyReport) -> Answer {
    let (lines, json) = report::compared(compared);
    Answer::Lines { lines, json }.with_failure((!compared.is_same()).then(|| failure(compared)))
}

async fn open_source(url: &str, log: Log) -> Result<Source, Failure> {
    let opened = async { source::open(&stores::resolve(url)?, log).await };
    opened.await.map_err(|failure| failure.at("source"))
}

impl Verify {
    /// Compares the source with the store of the target's URL.
    pub(crate) async fn run(&self, target: &str, log: Log) -> Result<Answer, Failure> {
        let source = open_source(&self.source, log).await?;
        let target = source::open(target, log).await.map_err(|failure| failure.at("target"))?;
        let interrupt = Interrupt::listen()?;
        let (records, others) = (source.records(), target.records());
        let total = source.total.zip(target.total).map(|(one, other)| one + other);
        let compared = compare(records, others, total, &self.filter.build(), &interrupt).await;
        let _ = interrupt.unless(source.close()).await;
        let _ = interrupt.unless(target.close()).await;
        Ok(answer(&compared?))
    }
}
