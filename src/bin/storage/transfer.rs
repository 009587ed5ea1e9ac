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
    Error, ErrorKind, Exportable, IMPORT_CHUNK, RecordKind, Storage,
    migrate::{
        self, Checkpoint, CopyEvent, CopyOptions, CopyReport, Filter, Glob, OnConflict, Tallies, VerifyReport,
    },
};

use crate::{
    backends::Operated,
    commands::verify,
    door::Door,
    failure::{Failure, told},
    interrupt::Interrupt,
    log::Log,
    nothing::Nothing,
    output::Answer,
    place::label,
    progress::{Bar, grouped, several},
    report,
    source::{Source, counted, counts},
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
    /// The most records a second. MongoDB ends the reading of a source after five minutes: --resume goes on
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Conflict {
    /// Write nothing at all if there is one; with --resume, or from a pipe, stop there
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
        let keeps_place = self.resume || self.checkpoint.is_some();
        if !source.can_repeat && (self.verify || keeps_place) {
            return Err(Failure::line(
                "a pipe can be read once: --verify, --resume and --checkpoint need a file",
            )
            .hint("name a file, or run `storage verify` afterwards"));
        }
        if source.label.is_none() && keeps_place {
            return Err(Failure::line(
                "nothing tells this source from others, so a place in it can't be kept",
            ));
        }
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
                    return self.dry_run(&Storage::new(Nothing(B::KINDS))).await;
                }
                Err(failure) => return Err(failure.at("target")),
            };
            return self.dry_run(target).await;
        }
        let target = self.interrupt.unless(door.create()).await?.map_err(|failure| failure.at("target"))?;
        let mut options = self.transfer.options();
        let place = self.place(&label(door.url()))?;
        let is_begun = match &place {
            Some(place) => place.checkpoint.is_begun().await.map_err(|error| place.refused(error))?,
            None => false,
        };
        if !is_begun && let Some((report, failure)) = self.conflicts(target).await? {
            return Ok(but(report::copied(&report, None), Some(failure)));
        }
        options.checkpoint = place.as_ref().map(|place| place.checkpoint.clone());
        let copied = self.copy(target, &options, "copying").await;
        let (report, _) = copied.map_err(|error| match &place {
            _ if self.interrupt.is_set() => Failure::interrupted(),
            Some(place) => place.refused(error),
            None => error.into(),
        })?;
        let (verified, failure) = match self.transfer.verify && report.stopped.is_none() {
            false => (None, None),
            true => match self.verify(target, &options.filter).await {
                Ok(verified) => (Some(verified), None),
                Err(failure) => (None, Some(failure.after(&report))),
            },
        };
        let failure = failure.or_else(|| self.failure(&report, verified.as_ref(), place.is_some()));
        Ok(but(report::copied(&report, verified.as_ref()), failure))
    }

    async fn dry_run<B: Exportable>(&self, target: &Storage<B>) -> Result<Answer, Failure> {
        let (report, conflicts) = self.copy(target, &self.transfer.options(), "comparing").await?;
        let failure = match conflicts {
            0 => self.failure(&report, None, false),
            _ if report.stopped.is_some() => self.failure(&report, None, false),
            _ => Some(Failure::conflicts(conflicts)),
        };
        Ok(but(report::copied(&report, None), failure))
    }

    /// What would stop a copy that must not meet a conflict: found before anything is written. Where the target has nothing there is
    /// nothing to find; and what was begun may have been written by ourselves.
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

    /// The report, and how many records were in conflict.
    async fn copy<B: Exportable>(
        &self,
        target: &Storage<B>,
        options: &CopyOptions,
        what: &'static str,
    ) -> Result<(CopyReport, u64), Error> {
        let done = Arc::new(AtomicU64::new(0));
        let records = self.interrupt.ends(counted(self.source.records(), done.clone()));
        let (mut bar, log) = (Bar::new(what, self.source.total), self.log);
        let (mut resumed, mut conflicts) = (0, 0);
        let target = target.clone().layer(self.interrupt.clone());
        let report = migrate::copy(records, &target, options, |event| match event {
            CopyEvent::Resumed(tallies) => resumed = tallies.total().read,
            CopyEvent::Progress(tallies) => {
                bar.at(done.load(Ordering::Relaxed), tallies.total().read.saturating_sub(resumed));
            }
            CopyEvent::Retrying { error, after } => {
                bar.note(log, &format!("note: {}; trying again in {after:.1?}", told(&error)));
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
            Some(total) => counts(target).await.map(|there| total + there),
            None => None,
        };
        verify::compare(self.source.records(), target.export(), total, filter, self.interrupt).await
    }

    /// What keeps this from being a success.
    fn failure(
        &self,
        report: &CopyReport,
        verified: Option<&VerifyReport>,
        has_place: bool,
    ) -> Option<Failure> {
        let total = report.tallies.total();
        if let Some(error) = &report.stopped {
            let has_written = total.written > 0 && !report.dry_run;
            let failure = self.stopped(error, has_written);
            let written = match total.written {
                1 => "the record before it is stored".to_owned(),
                count => format!("the {} records before it are stored", grouped(count)),
            };
            use ErrorKind::{Conflict, Corrupt, InvalidValue};
            return Some(match error.kind() {
                // It would be met again.
                Conflict if has_place => failure.hint(
                    "--resume with --on-conflict skip goes on and keeps them, with --on-conflict overwrite it replaces them",
                ),
                Conflict if has_written => failure.hint(format!(
                    "{written}; --on-conflict skip keeps what differs, --on-conflict overwrite replaces it"
                )),
                Conflict => failure.hint("--on-conflict skip keeps them, --on-conflict overwrite replaces them"),
                Corrupt | InvalidValue if has_written => failure.hint(written),
                Corrupt | InvalidValue => failure,
                _ if has_place => failure.hint("the same line with --resume goes on from there"),
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

    /// Where the copy's place is kept: in the file that is named, or in one for these two stores where programs keep such things.
    fn place(&self, target: &str) -> Result<Option<Place>, Failure> {
        let Some(source) = &self.source.label else { return Ok(None) };
        let path = match &self.transfer.checkpoint {
            Some(path) => Some(path.clone()),
            None => self.default_path(source, target)?,
        };
        Ok(path.map(|path| {
            let checkpoint = Checkpoint::new(&path, source, target);
            let checkpoint = if self.transfer.resume { checkpoint.resuming() } else { checkpoint };
            Place { path, checkpoint }
        }))
    }

    fn default_path(&self, source: &str, target: &str) -> Result<Option<PathBuf>, Failure> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state =
            absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let Some(folder) = state.map(|state| state.join("gateway-storage")) else {
            let lost = Failure::line("neither XDG_STATE_HOME nor HOME says where checkpoints are");
            return if self.transfer.resume {
                Err(lost.hint("name one with --checkpoint"))
            } else {
                Ok(None)
            };
        };
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.recursive(true).create(&folder) {
            Ok(()) => Ok(Some(folder.join(format!("copy-{}.json", Checkpoint::name(source, target))))),
            Err(error) if self.transfer.resume => {
                Err(Failure::unreadable(&format!("the folder `{}`", folder.display()), &error))
            }
            // A system without a home for us: then there is nothing to resume from.
            Err(_) => Ok(None),
        }
    }
}

/// A checkpoint and its file.
struct Place {
    path: PathBuf,
    checkpoint: Checkpoint,
}

impl Place {
    /// A copy that does not begin. Where that is because of the checkpoint, people want to know where it is.
    fn refused(&self, error: Error) -> Failure {
        let names_it = error.to_string().contains("checkpoint");
        let failure = Failure::from(error);
        match names_it {
            true => {
                failure.hint(format!("the checkpoint is `{}`: remove it to begin anew", self.path.display()))
            }
            false => failure,
        }
    }
}

/// What a copy did that looked for conflicts and found some.
fn nothing_written(mut report: CopyReport) -> CopyReport {
    report.dry_run = false;
    let Tallies { credentials, configs, usage, .. } = &mut report.tallies;
    for tally in [credentials, configs, usage] {
        (tally.written, tally.bytes) = (0, 0);
    }
    report
}

fn but(answer: Answer, failure: Option<Failure>) -> Answer {
    match failure {
        Some(failure) => Answer::But { answer: Box::new(answer), failure },
        None => answer,
    }
}
