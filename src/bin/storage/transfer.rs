//! Moving records into a store, for `copy`, `import` and `adopt`.

use std::{
    env, fs,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, pin_mut};
use gateway_storage::{
    Error, ErrorKind, Exportable, IMPORT_CHUNK, RecordKind, Storage,
    migrate::{
        self, Checkpoint, CopyEvent, CopyOptions, CopyReport, Filter, Glob, OnConflict, Tallies, VerifyReport,
    },
};

use crate::{
    backends::CliBackend,
    commands::verify,
    empty_store::EmptyStore,
    failure::{Failure, with_causes},
    identity::identity_of,
    interrupt::Interrupt,
    log::Log,
    output::Answer,
    progress::{Bar, grouped, several},
    report,
    session::Session,
    source::{Source, counted, counts},
};

/// The options that select records.
#[derive(Args)]
pub(crate) struct RecordFilter {
    /// Only these kinds
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,..")]
    kinds: Vec<Kind>,
    /// Keys like this (`*` any text, `?` a character, `\` escapes); repeatable
    #[arg(long, value_name = "GLOB")]
    include: Vec<Glob>,
    /// No keys like this; repeatable
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<Glob>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Credentials,
    Configs,
    Usage,
}

impl RecordFilter {
    pub(crate) fn build(&self) -> Filter {
        let kind = |kind: &Kind| match kind {
            Kind::Credentials => RecordKind::Credential,
            Kind::Configs => RecordKind::Config,
            Kind::Usage => RecordKind::Usage,
        };
        let mut filter = Filter::default();
        filter.kinds = self.kinds.iter().map(kind).collect();
        (filter.include, filter.exclude) = (self.include.clone(), self.exclude.clone());
        filter
    }
}

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
    /// Compare source and target afterwards, record by record
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,
    /// Resume an interrupted run
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Checkpoint file
    ///
    /// [default: one per pair of stores in ~/.local/state/gateway-storage]
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    checkpoint: Option<PathBuf>,
    /// Batches written concurrently
    #[arg(long, value_name = "N", default_value = "4")]
    concurrency: NonZeroUsize,
    /// Records per batch
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(IMPORT_CHUNK).unwrap_or(NonZeroUsize::MIN))]
    batch: NonZeroUsize,
    /// Maximum records per second
    ///
    /// A MongoDB source ends after five minutes: continue with --resume
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Conflict {
    /// Write nothing if a record conflicts; with --resume or from a pipe, stop there
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
        let interrupt = Interrupt::listen().map_err(|error| Failure::no_signals(&error))?;
        let job = Job { transfer: self, source: &source, interrupt: &interrupt, log: session.log() };
        let result = job.run(session).await;
        interrupt.close(source).await;
        result
    }

    fn options(&self) -> CopyOptions {
        let mut options = CopyOptions::default().with_filter(self.filter.build());
        options.on_conflict = match self.on_conflict {
            Conflict::Fail => OnConflict::Fail,
            Conflict::Skip => OnConflict::Skip,
            Conflict::Overwrite => OnConflict::Overwrite,
        };
        options.dry_run = self.dry_run;
        (options.batch, options.concurrency) = (self.batch.get(), self.concurrency.get());
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
        let checkpoint = self.checkpoint(&identity_of(session.url()))?;
        let is_begun = match &checkpoint {
            Some(file) => file.checkpoint.is_begun().await.map_err(|error| file.failure(error))?,
            None => false,
        };
        if !is_begun && let Some((report, failure)) = self.conflicts(target).await? {
            return Ok(with_failure(report::copied(&report, None), Some(failure)));
        }
        options.checkpoint = checkpoint.as_ref().map(|file| file.checkpoint.clone());
        let copied = self.copy(target, &options, "copying").await;
        let (report, _) = copied.map_err(|error| match &checkpoint {
            _ if self.interrupt.is_set() => Failure::interrupted(),
            Some(file) => file.failure(error),
            None => error.into(),
        })?;
        let (verified, failure) = match self.transfer.verify && report.stopped.is_none() {
            false => (None, None),
            true => match self.verify(target, &options.filter).await {
                Ok(verified) => (Some(verified), None),
                Err(failure) => (None, Some(failure.after(&report))),
            },
        };
        let failure = failure.or_else(|| self.failure(&report, verified.as_ref(), checkpoint.is_some()));
        Ok(with_failure(report::copied(&report, verified.as_ref()), failure))
    }

    async fn dry_run<B: Exportable>(&self, target: &Storage<B>) -> Result<Answer, Failure> {
        let (report, conflicts) = self.copy(target, &self.transfer.options(), "comparing").await?;
        let failure = match conflicts {
            0 => self.failure(&report, None, false),
            _ if report.stopped.is_some() => self.failure(&report, None, false),
            _ => Some(Failure::conflicts(conflicts)),
        };
        Ok(with_failure(report::copied(&report, None), failure))
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
        {
            let export = target.export();
            pin_mut!(export);
            if self.interrupt.unless(export.next()).await?.transpose()?.is_none() {
                return Ok(None);
            }
        }
        let options = self.transfer.options().with_dry_run();
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
        let report = report.await?;
        Ok((report, conflicts))
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
        verify::compare(self.source.records(), target.export(), total, filter, self.interrupt).await
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
        verified.filter(|verified| !verified.has_source()).map(verify::failure)
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

    /// The checkpoint: in the file of `--checkpoint`, or in one for these two stores in the user's state
    /// directory.
    fn checkpoint(&self, target: &str) -> Result<Option<CheckpointFile>, Failure> {
        let Some(source) = &self.source.identity else { return Ok(None) };
        let path = match &self.transfer.checkpoint {
            Some(path) => Some(path.clone()),
            None => self.default_path(source, target)?,
        };
        Ok(path.map(|path| {
            let checkpoint = Checkpoint::new(&path, source, target);
            let checkpoint = if self.transfer.resume { checkpoint.resuming() } else { checkpoint };
            CheckpointFile { path, checkpoint }
        }))
    }

    fn default_path(&self, source: &str, target: &str) -> Result<Option<PathBuf>, Failure> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state =
            absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let Some(directory) = state.map(|state| state.join("gateway-storage")) else {
            let failure = Failure::usage("neither XDG_STATE_HOME nor HOME is set, so there is no checkpoint");
            return if self.transfer.resume {
                Err(failure.hint("name one with --checkpoint"))
            } else {
                Ok(None)
            };
        };
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.recursive(true).create(&directory) {
            Ok(()) => Ok(Some(directory.join(format!("copy-{}.json", Checkpoint::name(source, target))))),
            Err(error) if self.transfer.resume => {
                Err(Failure::unreadable(&format!("the directory `{}`", directory.display()), &error))
            }
            // Without a state directory the copy runs without a checkpoint.
            Err(_) => Ok(None),
        }
    }
}

/// A checkpoint and its path.
struct CheckpointFile {
    path: PathBuf,
    checkpoint: Checkpoint,
}

impl CheckpointFile {
    /// The copy could not start. If the checkpoint is the cause, the hint names its path.
    fn failure(&self, error: Error) -> Failure {
        let names_it = error.to_string().contains("checkpoint");
        let failure = Failure::from(error);
        match names_it {
            true => {
                failure.hint(format!("the checkpoint is `{}`: remove it to start over", self.path.display()))
            }
            false => failure,
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

fn with_failure(answer: Answer, failure: Option<Failure>) -> Answer {
    match failure {
        Some(failure) => Answer::WithFailure { answer: Box::new(answer), failure },
        None => answer,
    }
}
