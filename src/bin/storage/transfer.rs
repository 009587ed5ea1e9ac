//! Moving records into a store: what `copy`, `import` and `adopt` have in common.

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
    Error, ErrorKind, Exportable, IMPORT_CHUNK, Memory, RecordKind, Storage,
    migrate::{self, Checkpoint, CopyEvent, CopyOptions, CopyReport, Filter, Glob, OnConflict, VerifyReport},
};

use crate::{
    backends::Operated,
    commands::verify,
    door::Door,
    failure::Failure,
    interrupt::Interrupt,
    log::Log,
    output::Answer,
    progress::{Bar, several},
    report,
    source::{Source, counted, label},
};

/// Which records are meant.
#[derive(Args)]
pub(crate) struct Meant {
    /// Only these kinds
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,..")]
    kinds: Vec<Kind>,
    /// Only keys like this (`*` is any text, `?` a character, `\` takes away their meaning); can be given again
    #[arg(long, value_name = "GLOB")]
    include: Vec<Glob>,
    /// No keys like this; can be given again
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<Glob>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Credentials,
    Configs,
    Usage,
}

impl Meant {
    pub(crate) fn filter(&self) -> Filter {
        let kind = |kind: &Kind| match kind {
            Kind::Credentials => RecordKind::Credential,
            Kind::Configs => RecordKind::Config,
            Kind::Usage => RecordKind::Usage,
        };
        let mut filter = Filter::default();
        filter.kinds = self.kinds.iter().map(kind).collect();
        // The order of kinds says nothing, and a checkpoint knows its filter again.
        filter.kinds.sort_unstable();
        filter.kinds.dedup();
        (filter.include, filter.exclude) = (self.include.clone(), self.exclude.clone());
        filter
    }
}

/// How records are moved.
#[derive(Args)]
pub(crate) struct Transfer {
    #[command(flatten)]
    meant: Meant,
    /// What becomes of a record that the target has with another value
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Conflict::Fail)]
    on_conflict: Conflict,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Compare source and target afterwards, record by record
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,
    /// Go on where an interrupted run of the same was
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Where the place is kept [default: a file for these two stores in ~/.local/state/gateway-storage]
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    checkpoint: Option<PathBuf>,
    /// How many batches are written at once
    #[arg(long, value_name = "N", default_value = "4")]
    concurrency: NonZeroUsize,
    /// How many records a batch has
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(IMPORT_CHUNK).unwrap_or(NonZeroUsize::MIN))]
    batch: NonZeroUsize,
    /// The most records a second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Conflict {
    /// Write nothing at all if there is one
    Fail,
    /// The target keeps its own
    Skip,
    /// The source's takes its place
    Overwrite,
}

impl Transfer {
    /// Moves what the source has into the store behind the door, and closes the source.
    pub(crate) async fn run<B: Operated + Exportable>(
        &self,
        source: Source,
        door: &Door<'_, B>,
    ) -> Result<Answer, Failure> {
        let interrupt = Interrupt::listen().map_err(|error| Failure::unheard(&error))?;
        let moving = Moving { transfer: self, source: &source, interrupt: &interrupt, log: door.log() };
        let result = moving.move_to(door).await;
        interrupt.close(source).await;
        result
    }

    fn options(&self) -> CopyOptions {
        let mut options = CopyOptions::default().with_filter(self.meant.filter());
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

/// A transfer and where it is from.
struct Moving<'m> {
    transfer: &'m Transfer,
    source: &'m Source,
    interrupt: &'m Interrupt,
    log: Log,
}

impl Moving<'_> {
    async fn move_to<B: Operated + Exportable>(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        if self.transfer.dry_run {
            let target = match self.interrupt.unless(door.open()).await? {
                Ok(target) => target,
                // It would be made.
                Err(failure) if failure.kind == ErrorKind::NotFound.as_str() => {
                    let empty = Storage::<Memory>::open("memory:").await?;
                    return self.dry_run(&empty).await;
                }
                Err(failure) => return Err(failure.at("target")),
            };
            return self.dry_run(target).await;
        }
        let target = self.interrupt.unless(door.create()).await?.map_err(|failure| failure.at("target"))?;
        let conflicts = self.conflicts(target).await?;
        if let Some(report) = conflicts {
            let count = report.tallies.total().failed;
            let failure = Failure::conflicts(count);
            return Ok(Answer::But { answer: Box::new(report::copied(&report, None)), failure });
        }
        let mut options = self.transfer.options();
        let (path, label) = (self.checkpoint(door.url())?, label(door.url()));
        options.checkpoint = path.as_ref().map(|path| {
            let checkpoint = Checkpoint::new(path, &self.source.label, &label);
            if self.transfer.resume { checkpoint.resuming() } else { checkpoint }
        });
        let report = self.copy(target, &options, "copying").await?;
        let verified = match self.transfer.verify && report.stopped.is_none() {
            true => Some(self.verify(target, &options.filter).await?),
            false => None,
        };
        let answer = report::copied(&report, verified.as_ref());
        Ok(match self.failure(&report, verified.as_ref(), path) {
            Some(failure) => Answer::But { answer: Box::new(answer), failure },
            None => answer,
        })
    }

    async fn dry_run<B: Exportable>(&self, target: &Storage<B>) -> Result<Answer, Failure> {
        let report = self.copy(target, &self.transfer.options(), "comparing").await?;
        let answer = report::copied(&report, None);
        Ok(match self.failure(&report, None, None) {
            Some(failure) => Answer::But { answer: Box::new(answer), failure },
            None => answer,
        })
    }

    /// What would stop a copy that must not meet a conflict: found before anything is written. Where the target has nothing there is
    /// nothing to find; and what was begun may have been written by ourselves.
    async fn conflicts<B: Exportable>(&self, target: &Storage<B>) -> Result<Option<CopyReport>, Failure> {
        let Transfer { on_conflict, resume, .. } = self.transfer;
        if *on_conflict != Conflict::Fail || *resume || !self.source.can_repeat {
            return Ok(None);
        }
        {
            let export = target.export();
            pin_mut!(export);
            if self.interrupt.unless(export.next()).await?.transpose()?.is_none() {
                return Ok(None);
            }
        }
        let report = self.copy(target, &self.transfer.options().with_dry_run(), "comparing").await?;
        if let Some(error) = &report.stopped {
            return Err(self.stopped(error, false));
        }
        Ok((report.tallies.total().failed > 0).then_some(report))
    }

    async fn copy<B: Exportable>(
        &self,
        target: &Storage<B>,
        options: &CopyOptions,
        what: &'static str,
    ) -> Result<CopyReport, Failure> {
        let done = Arc::new(AtomicU64::new(0));
        let records = self.interrupt.ends(counted(self.source.records(), done.clone()));
        let (mut bar, log) = (Bar::new(what, self.source.total), self.log);
        let mut resumed = 0;
        let report = migrate::copy(records, target, options, |event| match event {
            CopyEvent::Resumed(tallies) => resumed = tallies.total().read,
            CopyEvent::Progress(tallies) => {
                bar.at(done.load(Ordering::Relaxed), tallies.total().read.saturating_sub(resumed));
            }
            CopyEvent::Retrying { error, after } => {
                bar.note(log, &format!("note: {error}; trying again in {after:.1?}"));
            }
            _ => {}
        });
        Ok(report.await?)
    }

    async fn verify<B: Exportable>(
        &self,
        target: &Storage<B>,
        filter: &Filter,
    ) -> Result<VerifyReport, Failure> {
        let source = self.source.records();
        verify::compare(source, self.source.total, target.export(), filter, self.interrupt).await
    }

    /// What keeps this from being a success.
    fn failure(
        &self,
        report: &CopyReport,
        verified: Option<&VerifyReport>,
        checkpoint: Option<PathBuf>,
    ) -> Option<Failure> {
        if let Some(error) = &report.stopped {
            let failure = self.stopped(error, report.tallies.total().written > 0 && !report.dry_run);
            return Some(match checkpoint {
                Some(_) => failure.hint("the same line with --resume goes on from there"),
                None => failure,
            });
        }
        let failed = report.tallies.total().failed;
        if failed > 0 {
            let verb = match (report.dry_run, failed) {
                (true, _) => "would not be",
                (false, 1) => "was not",
                (false, _) => "were not",
            };
            return Some(Failure::partly(format!("{} {verb} copied", several(failed, "record"))));
        }
        verified.filter(|verified| !verified.has_source()).map(verify::failure)
    }

    fn stopped(&self, error: &Error, has_written: bool) -> Failure {
        if self.interrupt.is_set() {
            let failure = Failure::interrupted();
            let outcome = if has_written { "partly_applied" } else { failure.outcome };
            Failure { outcome, ..failure }
        } else if has_written {
            Failure::stopped(error)
        } else {
            Failure::from(error.clone())
        }
    }

    /// The checkpoint's file: the one that is named, or one for these two stores where programs keep such things.
    fn checkpoint(&self, target: &str) -> Result<Option<PathBuf>, Failure> {
        if let Some(path) = &self.transfer.checkpoint {
            return Ok(Some(path.clone()));
        }
        if !self.source.can_repeat {
            return Ok(None);
        }
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state =
            absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let Some(folder) = state.map(|state| state.join("gateway-storage")) else { return Ok(None) };
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.recursive(true).create(&folder) {
            Ok(()) => {
                let name = Checkpoint::name(&self.source.label, &label(target));
                Ok(Some(folder.join(format!("copy-{name}.json"))))
            }
            Err(error) if self.transfer.resume => {
                Err(Failure::unreadable(&format!("the folder `{}`", folder.display()), &error))
            }
            // A system without a home for us: then there is nothing to resume from.
            Err(_) => Ok(None),
        }
    }
}
