//! Export files that are read: whose they are, and whether they are whole.

use std::{
    fs::File,
    io::{IsTerminal, Read, stdin},
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::stream;
use gateway_storage::{
    Error, ErrorKind, Record,
    archive::{self, Contents, GoDocument, RecordHasher},
};

use crate::{
    bytes::{FromFile, FromStdin, Watched},
    failure::Failure,
    progress::Bar,
    source::{Records, Source, ahead},
};

/// A file that is read.
pub(crate) struct Archive {
    /// For people.
    pub(crate) name: String,
    from: From,
}

enum From {
    /// It can be read again.
    File(FromFile),
    Pipe(FromStdin),
}

/// What is in it.
pub(crate) enum Kind {
    Export,
    Go,
}

impl Archive {
    /// Opens a file, or stdin where `-` or nothing is named.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let name = "stdin".to_owned();
            let unreadable = |error| Failure::unreadable("stdin", &error);
            if stdin().is_terminal() {
                return Err(
                    Failure::line("stdin is a terminal").hint("name a file, or pipe an export into this")
                );
            }
            let file = File::from(stdin().as_fd().try_clone_to_owned().map_err(unreadable)?);
            let is_file = file.metadata().map_err(unreadable)?.is_file();
            let from = if is_file { From::File(FromFile::new(file)) } else { From::Pipe(FromStdin::new()) };
            return Ok(Self { name, from });
        };
        let name = format!("the file `{}`", path.display());
        let file = File::open(path).map_err(|error| Failure::unreadable(&name, &error))?;
        let metadata = file.metadata().map_err(|error| Failure::unreadable(&name, &error))?;
        if !metadata.is_file() {
            return Err(Failure::line(format!("{name} is no file")).hint("`-` reads a pipe on stdin"));
        }
        Ok(Self { name, from: From::File(FromFile::new(file)) })
    }

    pub(crate) const fn is_pipe(&self) -> bool {
        matches!(self.from, From::Pipe(_))
    }

    /// What it says to be.
    pub(crate) async fn kind(&mut self) -> Result<Kind, Failure> {
        let mut begin = Vec::new();
        let read = match &mut self.from {
            From::File(file) => file.clone().take(4096).read_to_end(&mut begin).map(drop),
            From::Pipe(pipe) => pipe.peek().await.map(|page| begin.extend_from_slice(page)),
        };
        read.map_err(|error| Failure::unreadable(&self.name, &error))?;
        if let Some(name) = compressor(&begin) {
            let hint = format!(
                "`{name} -d < FILE | storage inspect`; `import` takes such a pipe with --no-verify-first"
            );
            return Err(Failure::line(format!("{} is compressed", self.name)).hint(hint));
        }
        // An export that is damaged at its very beginning is told so.
        Ok(if archive::is_go(&begin) && !begin.starts_with(b"{\"form") { Kind::Go } else { Kind::Export })
    }

    /// Reads all of it, and says what it holds.
    pub(crate) async fn check(&mut self) -> Result<Contents, Failure> {
        let checked = match &mut self.from {
            From::File(file) => archive::check(watched(file.clone())).await,
            From::Pipe(pipe) => archive::check(Watched::new(pipe, Bar::of_bytes("checking", None))).await,
        };
        checked.map_err(|error| self.refused(&error))
    }

    /// Reads the document of the Go module.
    pub(crate) async fn go(self) -> Result<GoDocument, Failure> {
        let Self { name, from } = self;
        let document = match from {
            From::File(file) => archive::read_go(watched(file)),
            From::Pipe(pipe) => {
                let all = pipe.read_all(archive::MAX_GO_BYTES).await;
                archive::read_go(&all.map_err(|error| Failure::unreadable(&name, &error))?[..])
            }
        };
        document.map_err(|error| Failure::archive(&name, &error))
    }

    fn refused(&self, error: &Error) -> Failure {
        let failure = Failure::archive(&self.name, error);
        match error.kind() {
            ErrorKind::Unsupported => {
                failure.hint("use the version of this command that wrote it, or a later one")
            }
            _ => failure,
        }
    }

    /// Its records, of a file that was checked, or of one that is checked while it is read.
    pub(crate) fn source(self, contents: Option<&Contents>) -> Source {
        match self.from {
            From::File(file) => {
                // The place in a copy is that in its records, wherever the file is; in those of a file that was not checked only as
                // long as nobody touches it.
                let label = match contents {
                    Some(contents) => Some(format!("export {}", contents.digest)),
                    None => file.identity().ok(),
                };
                let mut source = Source::new(label, true, move || ahead(archive::read(file.clone())));
                source.total =
                    contents.map(|contents| contents.credentials + contents.configs + contents.usage_records);
                source
            }
            From::Pipe(pipe) => {
                let pipe = Mutex::new(Some(pipe));
                Source::new(None, false, move || {
                    match pipe.lock().unwrap_or_else(PoisonError::into_inner).take() {
                        Some(pipe) => ahead(archive::read(pipe)),
                        None => Box::pin(stream::empty()) as Records,
                    }
                })
            }
        }
    }
}

fn watched(file: FromFile) -> Watched<FromFile> {
    let bar = Bar::of_bytes("checking", file.length());
    Watched::new(file, bar)
}

/// What a file that begins so is made smaller with.
fn compressor(begin: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], _); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];
    known.into_iter().find_map(|(magic, name)| begin.starts_with(magic).then_some(name))
}

/// The records of a document.
pub(crate) fn document_source(records: Vec<Record>) -> Source {
    let mut hasher = RecordHasher::default();
    records.iter().for_each(|record| hasher.update(record));
    let records = Arc::new(records);
    let label = format!("export {}", hasher.finish());
    Source::new(Some(label), true, move || {
        let records = records.clone();
        Box::pin(stream::iter((0..records.len()).map(move |at| Ok(records[at].clone()))))
    })
}
