//! Copies records into a store.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use gateway_storage::{
    Error, ErrorKind, Exportable, IMPORT_CHUNK, Storage,
    migrate::{self, CopyEvent, CopyOptions, CopyReport, Filter, OnConflict, Tallies, VerifyReport},
};

use super::{
    checkpoint::checkpoint,
    comparison,
    empty_store::EmptyStore,
    filter::RecordFilter,
    source::{Source, counted, counts},
};
use crate::{
    backend::CliBackend,
    identity::identity_of,
    session::Session,
    term::{
        failure::{Failure, with_causes},
        interrupt::Interrupt,
        log::Log,
        output::Answer,
        progress::Bar,
        report,
        text::{grouped, several},
    },
};

/// The options of a transfer.
#[derive(Args)]
pub(crate) struct Transfer {
    #[command(flatten)]
    filter: RecordFilter,
    /// What to do if the target has a different value
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Conflict::Fail)]
    on_conflict: Conflict,
    /// Show what would be written without writing it
    #[arg(long)]
    dry_run: bool,
    /// Compare source and target after the copy, record by record
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,
    /// Resume an interrupted copy from its checkpoint
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// File of the checkpoint
    ///
    /// [default: one per pair of stores in ~/.local/state/gateway-storage]
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    checkpoint: Option<PathBuf>,
    /// Number of batches written concurrently
    #[arg(long, value_name = "N", default_value = "4")]
    concurrency: NonZeroUsize,
    /// Records per batch
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(IMPORT_CHUNK).unwrap_or(NonZeroUsize::MIN))]
    batch: NonZeroUsize,
    /// Maximum records per second
    ///
    /// An export from MongoDB ends after five minutes: continue with --resume
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Conflict {
    /// Write nothing if a record conflicts; with --resume or from a pipe, stop at the first conflict
    Fail,
    /// Keep the target's value
    Skip,
    /// Replace it with the source's value
    Overwrite,
}

impl Transfer {
    /// Copies the records of the source into the store of the session, and closes the source.
    pub(crate) async fn run<B: CliBackend + Exportable>(
        &self,
        source: Source,
        session: &Session<'_, B>,
    ) -> Result<Answer, Failure> {
        let uses_checkpoint = self.resume || self.checkpoint.is_some();
        if !source.can_repeat && (self.verify || uses_checkpoint) {
            return Err(Failure::usage(
                "a pipe can be read only once; --verify, --resume and --checkpoint need a file",
            )
            .hint("name a file, or run `storage verify` afterwards"));
        }
        if source.identity.is_none() && uses_checkpoint {
            return Err(Failure::usage("this source can't be identified, so it can't have a checkpoint"));
        }
        let interrupt = Interrupt::listen()?;
        let job = Job { transfer: self, source: &source, interrupt: &interrupt, log: session.log };
        let result = job.run(session).await;
        let _ = interrupt.unless(source.close()).await;
        result
    }

    fn options(&self) -> CopyOptions {
        let mut options = CopyOptions::default()
            .with_filter(self.filter.build())
            .with_on_conflict(match self.on_conflict {
                Conflict::Fail => OnConflict::Fail,
                Conflict::Skip => OnConflict::Skip,
                Conflict::Overwrite => OnConflict::Overwrite,
            })
            .with_dry_run(self.dry_run)
            .with_batch(self.batch.get())
            .with_concurrency(self.concurrency.get());
        options.rate = self.rate;
        options
    }
}

/// A transfer from one source.
struct Job<'m> {
    transfer: &'m Transfer,
    source: &'m Source,
    interrupt: &'m Interrupt,
    log: Log,
}

impl Job<'_> {
    async fn run<B: CliBackend + Exportable>(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        if self.transfer.dry_run {
            let target = match self.interrupt.unless(session.open()).await? {
                Ok(target) => target,
                // The real run would create it.
                Err(failure) if failure.kind == ErrorKind::NotFound.as_str() => {
                    return self.dry_run(&Storage::new(EmptyStore(B::KINDS))).await;
                }
                Err(failure) => return Err(failure.at("target")),
            };
            return self.dry_run(target).await;
        }
        let target =
            self.interrupt.unless(session.create()).await?.map_err(|failure| failure.at("target"))?;
        let mut options = self.transfer.options();
        let Transfer { checkpoint: file, resume, .. } = self.transfer;
        options.checkpoint = match &self.source.identity {
            Some(source) => checkpoint(source, &identity_of(session.url), file.as_deref(), *resume)?,
            None => None,
        };
        let is_begun = match &options.checkpoint {
            Some(checkpoint) => checkpoint.is_begun().await?,
            None => false,
        };
        if !is_begun && let Some((report, failure)) = self.conflicts(target).await? {
            return Ok(report::copied(&report, None).with_failure(Some(failure)));
        }
        let copied = self.copy(target, &options, "copying").await;
        let (report, _) = copied.map_err(|error| self.stopped(&error, false))?;
        let (verified, failure) = match self.transfer.verify && report.stopped.is_none() {
            false => (None, None),
            true => match self.verify(target, &options.filter).await {
                Ok(verified) => (Some(verified), None),
                Err(failure) => (None, Some(failure.after(&report))),
            },
        };
        let failure =
            failure.or_else(|| self.failure(&report, verified.as_ref(), options.checkpoint.is_some()));
        Ok(report::copied(&report, verified.as_ref()).with_failure(failure))
    }

    async fn dry_run<B: Exportable>(&self, target: &Storage<B>) -> Result<Answer, Failure> {
        let (report, conflicts) = self.copy(target, &self.transfer.options(), "comparing").await?;
        let failure = match conflicts {
            0 => self.failure(&report, None, false),
            _ if report.stopped.is_some() => self.failure(&report, None, false),
            _ => Some(Failure::conflicts(conflicts)),
        };
        Ok(report::copied(&report, None).with_failure(failure))
    }

    /// With `--on-conflict fail`, looks for conflicts before anything is written. Skipped if the target is
    /// empty; a resumed copy may have written the target itself.
    async fn conflicts<B: Exportable>(
        &self,
        target: &Storage<B>,
    ) -> Result<Option<(CopyReport, Failure)>, Failure> {
        if self.transfer.on_conflict != Conflict::Fail || !self.source.can_repeat {
            return Ok(None);
        }
        let first = self.interrupt.unless(pin!(target.export()).next()).await?.transpose()?;
        if first.is_none() {
            return Ok(None);
        }
        let options = self.transfer.options().with_dry_run(true);
        let (report, conflicts) = self.copy(target, &options, "comparing").await?;
        if let Some(error) = &report.stopped {
            return Err(self.stopped(error, false));
        }
        Ok((conflicts > 0).then(|| (nothing_written(report), Failure::conflicts(conflicts))))
    }

    /// Returns the report and the number of conflicts.
    async fn copy<B: Exportable>(
        &self,
        target: &Storage<B>,
        options: &CopyOptions,
        what: &'static str,
    ) -> Result<(CopyReport, u64), Error> {
        let done = Arc::new(AtomicU64::new(0));
        let records = self.interrupt.interruptible(counted(self.source.records(), done.clone()));
        let (mut bar, log) = (Bar::new(what, self.source.total), self.log);
        let (mut resumed, mut conflicts) = (0, 0);
        let target = target.clone().layer(self.interrupt.clone());
        let report = migrate::copy(records, &target, options, |event| match event {
            CopyEvent::Resumed(tallies) => resumed = tallies.total().read,
            CopyEvent::Progress(tallies) => {
                bar.at(done.load(Ordering::Relaxed), tallies.total().read.saturating_sub(resumed));
            }
            CopyEvent::Retrying { error, after } => {
                bar.note(log, &format!("note: {}; trying again in {after:.1?}", with_causes(&error)));
            }
            CopyEvent::Failed(failure) => conflicts += u64::from(failure.error.kind() == ErrorKind::Conflict),
            _ => {}
        });
        Ok((report.await?, conflicts))
    }

    async fn verify<B: Exportable>(
        &self,
        target: &Storage<B>,
        filter: &Filter,
    ) -> Result<VerifyReport, Failure> {
        let total = match self.source.total {
            Some(total) => counts(target).await.map(|in_target| total + in_target),
            None => None,
        };
        comparison::compare(self.source.records(), target.export(), total, filter, self.interrupt).await
    }

    /// The failure to report, unless the transfer was a success.
    fn failure(
        &self,
        report: &CopyReport,
        verified: Option<&VerifyReport>,
        has_checkpoint: bool,
    ) -> Option<Failure> {
        let total = report.tallies.total();
        if let Some(error) = &report.stopped {
            let has_written = total.written > 0 && !report.dry_run;
            let failure = self.stopped(error, has_written);
            let written = match total.written {
                1 => "1 record was stored before the error".to_owned(),
                count => format!("{} records were stored before the error", grouped(count)),
            };
            use ErrorKind::{Conflict, Corrupt, InvalidValue};
            return Some(match error.kind() {
                // Resuming alone would meet it again.
                Conflict if has_checkpoint => failure.hint(
                    "continue with --resume: --on-conflict skip keeps the target's values, overwrite replaces them",
                ),
                Conflict if has_written => failure.hint(format!(
                    "{written}; --on-conflict skip keeps the target's values, overwrite replaces them"
                )),
                Conflict => failure.hint("--on-conflict skip keeps the target's values, overwrite replaces them"),
                Corrupt | InvalidValue if has_written => failure.hint(written),
                Corrupt | InvalidValue => failure,
                _ if has_checkpoint => failure.hint("repeat the command with --resume to continue"),
                _ if has_written => failure.hint(written),
                _ => failure,
            });
        }
        if total.failed > 0 {
            let verb = match (report.dry_run, total.failed) {
                (true, _) => "would not be",
                (false, 1) => "was not",
                (false, _) => "were not",
            };
            let failure = Failure::partly(format!("{} {verb} copied", several(total.failed, "record")));
            return Some(match report.dry_run {
                true => Failure { outcome: "not_applied", ..failure },
                false => failure,
            });
        }
        verified.filter(|verified| !verified.has_source()).map(comparison::failure)
    }

    fn stopped(&self, error: &Error, has_written: bool) -> Failure {
        if self.interrupt.is_set() {
            let outcome = if has_written { "partly_applied" } else { Failure::from(error.clone()).outcome };
            Failure { outcome, ..Failure::interrupted() }
        } else if has_written {
            Failure::stopped(error)
        } else {
            Failure::from(error.clone())
        }
    }
}

/// The report of a copy that found conflicts before it wrote anything.
fn nothing_written(mut report: CopyReport) -> CopyReport {
    report.dry_run = false;
    let Tallies { credentials, configs, usage, .. } = &mut report.tallies;
    for tally in [credentials, configs, usage] {
        (tally.written, tally.bytes) = (0, 0);
    }
    report
}
