//! `storage export`.

use std::{
    future,
    io::{self, IsTerminal, stderr, stdout},
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, ValueEnum};
use futures_util::{Stream, StreamExt};
use gateway_storage::{
    Exportable, Record, Result as StorageResult,
    archive::{self, Contents, Header},
};
use serde_json::json;

use super::{Run, inspect};
use crate::{
    aside::Aside,
    backends::Operated,
    bytes::Blocking,
    door::Door,
    failure::Failure,
    interrupt::Interrupt,
    output::Answer,
    place::holds,
    progress::{Bar, grouped},
    source::counted,
    transfer::Meant,
};

/// Write all records of a store into a file
#[derive(Args)]
#[command(after_help = "\
The file holds secrets as they are stored. It is made for its owner only (0600), and is in its place when it is complete: what was
there before stays until then. What a killed export leaves beside it, .NAME.PID.tmp, the next one to this place removes. Cache
values, plans and their audit are not exported.

Each record is a line of JSON; the last line has their counts and SHA-256, by which `import` and `inspect` see damage. --format go
writes the one document that the Go module exported; it has no such sum.

Examples:
  storage export backup.ndjson
  storage export | zstd > backup.ndjson.zst
  storage export --kinds configs - | grep '\"models\"'
  storage export --format go for-the-old-gateway.json")]
pub(crate) struct Export {
    /// The file; - or nothing is stdout
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// How it is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Ndjson)]
    format: Format,
    #[command(flatten)]
    meant: Meant,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// A record a line
    Ndjson,
    /// The Go module's document
    Go,
}

impl<B: Operated + Exportable> Run<B> for Export {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let file = self.file.as_deref().filter(|path| *path != Path::new("-"));
        if file.is_none() && stdout().is_terminal() {
            let failure = Failure::line("an export holds secrets, and stdout is a terminal");
            return Err(failure.hint("name a file, or pipe it into a command"));
        }
        if file.is_some_and(|file| holds(door.url(), file)) {
            return Err(
                Failure::line("the file would be in the store's own folder").hint("name one outside of it")
            );
        }
        let storage = door.read().await?;
        // Only for the bar, and it can take a while.
        let stats = if stderr().is_terminal() { storage.stats().await.ok() } else { None };
        let total = stats.map(|stats| stats.credential_count + stats.config_count + stats.usage_record_count);

        // Not before: until the store is open there is nothing to end in order.
        let interrupt = Interrupt::listen().map_err(|error| Failure::unheard(&error))?;
        let unwritten = |error| Failure::unwritten_file(file.unwrap_or(Path::new("-")), &error);
        let aside = file.map(Aside::create).transpose().map_err(unwritten)?;
        let (done, mut read, mut kept) = (Arc::new(AtomicU64::new(0)), 0_u64, 0_u64);
        let mut bar = Bar::new("exporting", total);
        let filter = self.meant.filter();
        let records = interrupt.ends(counted(storage.export(), done.clone()));
        let records = records
            .inspect(|_| {
                read += 1;
                bar.at(done.load(Ordering::Relaxed), read);
            })
            .filter(|record| future::ready(record.as_ref().map_or(true, |record| filter.allows(record))))
            .inspect(|_| kept += 1);
        let header = Header::new(storage.label()).with_snapshot(storage.exports_snapshot());
        let (written, failed) = match &aside {
            Some(aside) => self.write(&header, records, aside.file()).await,
            None => self.write(&header, records, stdout().lock()).await,
        };
        bar.clear();
        let contents = match (written, failed) {
            (Ok(contents), _) => contents,
            (Err(_), _) if interrupt.is_set() => return Err(Failure::interrupted()),
            // Whoever reads has seen enough.
            (Err(_), Some(error)) if file.is_none() && error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Answer::Streamed);
            }
            (Err(_), Some(error)) => return Err(unwritten(error)),
            (Err(error), None) => return Err(error.into()),
        };
        let (Some(path), Some(aside)) = (file, aside) else { return Ok(Answer::Streamed) };
        aside.keep().map_err(unwritten)?;
        let (mut rows, mut document) = match contents {
            Some(contents) => inspect::rows(&contents),
            None => {
                let format = ("format".to_owned(), "the Go module's document".to_owned());
                (
                    vec![format, ("records".to_owned(), grouped(kept))],
                    json!({ "format": "go", "records": kept }),
                )
            }
        };
        rows.insert(0, ("file".into(), path.display().to_string()));
        document["file"] = path.display().to_string().into();
        Ok(Answer::report(rows, document))
    }
}

impl Export {
    /// Writes them, and says whether it was the writing that failed.
    async fn write(
        &self,
        header: &Header,
        records: impl Stream<Item = StorageResult<Record>>,
        out: impl io::Write + Unpin,
    ) -> (StorageResult<Option<Contents>>, Option<io::Error>) {
        let (records, mut out) = (pin!(records), Blocking::new(out));
        let written = match self.format {
            Format::Ndjson => archive::write(header, records, &mut out).await.map(Some),
            Format::Go => archive::write_go(header, records, &mut out).await.map(|()| None),
        };
        (written, out.failed)
    }
}
