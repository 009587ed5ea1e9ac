//! `storage export`.

use std::{
    future,
    io::{self, IsTerminal, stdout},
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

use super::{Answer, CliBackend, Failure, Run, Session, inspect};
use crate::{
    atomic_file::AtomicFile,
    identity::contains,
    io::bytes::BlockingWriter,
    term::{interrupt::Interrupt, progress::Bar, text::grouped},
    transfer::{
        filter::RecordFilter,
        source::{counted, counts},
    },
};

/// Write all records of a store to a file
#[derive(Args)]
#[command(after_help = "\
The file contains secrets in plain text. Only its owner can read it (0600). It replaces an
existing file only when it is complete. A killed export leaves .NAME.PID.tmp beside it; the
next export to the same file removes that. Cache values, plans and their audit are not exported.

Each record is one line of JSON. The last line has their counts and their SHA-256, by which
`import` and `inspect` detect damage. --format go writes the single document of gcli2api-go; it has
no checksum.

Examples:
  storage export backup.ndjson
  storage export | zstd > backup.ndjson.zst
  storage export --kinds configs - | grep '\"models\"'
  storage export --format go for-the-old-gateway.json")]
pub(crate) struct Export {
    /// The file; - or no argument writes to stdout
    #[arg(value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// File format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Ndjson)]
    format: Format,
    #[command(flatten)]
    filter: RecordFilter,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// One record per line
    Ndjson,
    /// The document of gcli2api-go
    Go,
}

impl<B: CliBackend + Exportable> Run<B> for Export {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let file = self.file.as_deref().filter(|path| *path != Path::new("-"));
        if file.is_none() && stdout().is_terminal() {
            let failure = Failure::usage("an export contains secrets, and stdout is a terminal");
            return Err(failure.hint("name a file, or pipe the export into a command"));
        }
        if file.is_some_and(|file| contains(session.url, file)) {
            return Err(Failure::usage("the file would be in the store's own directory")
                .hint("name one outside of it"));
        }
        let storage = session.read().await?;
        let total = counts(storage).await;
        // Not before: until the store is open there is nothing to clean up.
        let interrupt = Interrupt::listen()?;
        let unwritten = |error| Failure::unwritten_file(file.unwrap_or(Path::new("-")), &error);
        let target = file.map(AtomicFile::create).transpose().map_err(unwritten)?;
        let (done, mut read, mut kept) = (Arc::new(AtomicU64::new(0)), 0_u64, 0_u64);
        let mut bar = Bar::new("exporting", total);
        let filter = self.filter.build();
        let records = interrupt.interruptible(counted(storage.export(), done.clone()));
        let records = records
            .inspect(|_| {
                read += 1;
                bar.at(done.load(Ordering::Relaxed), read);
            })
            .filter(|record| future::ready(record.as_ref().map_or(true, |record| filter.allows(record))))
            .inspect(|_| kept += 1);
        let header = Header::new(storage.label()).with_snapshot(storage.exports_snapshot());
        let (written, failed) = match &target {
            Some(target) => self.write(&header, records, target.file()).await,
            None => self.write(&header, records, stdout().lock()).await,
        };
        bar.clear();
        let contents = match (written, failed) {
            (Ok(contents), _) => contents,
            (Err(_), _) if interrupt.is_set() => return Err(Failure::interrupted()),
            // The reader closed the pipe.
            (Err(_), Some(error)) if file.is_none() && error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Answer::AlreadyWritten);
            }
            (Err(_), Some(error)) => return Err(unwritten(error)),
            (Err(error), None) => return Err(error.into()),
        };
        let (Some(path), Some(target)) = (file, target) else { return Ok(Answer::AlreadyWritten) };
        target.persist().map_err(unwritten)?;
        let (mut rows, mut document) = match contents {
            Some(contents) => inspect::rows(&contents),
            None => {
                let format = ("format".to_owned(), "a gcli2api-go document".to_owned());
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
    /// Writes the records. Returns separately the error of the output, if that failed.
    async fn write(
        &self,
        header: &Header,
        records: impl Stream<Item = StorageResult<Record>>,
        out: impl io::Write + Unpin,
    ) -> (StorageResult<Option<Contents>>, Option<io::Error>) {
        let (records, mut out) = (pin!(records), BlockingWriter::new(out));
        let written = match self.format {
            Format::Ndjson => archive::write(header, records, &mut out).await.map(Some),
            Format::Go => archive::write_go(header, records, &mut out).await.map(|()| None),
        };
        (written, out.failed)
    }
}
