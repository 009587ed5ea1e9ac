//! Reads export files and checks them.

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

use super::bytes::{FileReader, StdinReader, WithProgress};
use crate::{
    term::{failure::Failure, progress::Bar},
    transfer::source::{Records, Source, ahead},
};

/// An export file or a pipe.
pub(crate) struct Archive {
    /// For messages.
    pub(crate) name: String,
    from: Input,
}

enum Input {
    /// Can be read more than once.
    File(FileReader),
    Pipe(StdinReader),
}

/// The format.
pub(crate) enum Kind {
    Export,
    Go,
}

impl Archive {
    /// Opens a file, or stdin for `-` or no path.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let name = "stdin".to_owned();
            let unreadable = |error| Failure::unreadable("stdin", &error);
            if stdin().is_terminal() {
                return Err(Failure::usage("stdin is a terminal")
                    .hint("name a file, or pipe an export into the command"));
            }
            let file = File::from(stdin().as_fd().try_clone_to_owned().map_err(unreadable)?);
            let is_file = file.metadata().map_err(unreadable)?.is_file();
            let from =
                if is_file { Input::File(FileReader::new(file)) } else { Input::Pipe(StdinReader::new()) };
            return Ok(Self { name, from });
        };
        let name = format!("the file `{}`", path.display());
        let file = File::open(path).map_err(|error| Failure::unreadable(&name, &error))?;
        let metadata = file.metadata().map_err(|error| Failure::unreadable(&name, &error))?;
        if !metadata.is_file() {
            return Err(Failure::usage(format!("{name} is not a regular file"))
                .hint("use `-` to read a pipe on stdin"));
        }
        Ok(Self { name, from: Input::File(FileReader::new(file)) })
    }

    pub(crate) const fn is_pipe(&self) -> bool {
        matches!(self.from, Input::Pipe(_))
    }

    /// Detects the format.
    pub(crate) async fn kind(&mut self) -> Result<Kind, Failure> {
        let mut begin = Vec::new();
        let read = match &mut self.from {
            Input::File(file) => file.clone().take(4096).read_to_end(&mut begin).map(drop),
            Input::Pipe(pipe) => pipe.peek().await.map(|page| begin.extend_from_slice(page)),
        };
        read.map_err(|error| Failure::unreadable(&self.name, &error))?;
        if let Some(name) = compressor(&begin) {
            let hint = format!(
                "`{name} -d < FILE | storage inspect`; `import` accepts such a pipe with --no-verify-first"
            );
            return Err(Failure::usage(format!("{} is compressed", self.name)).hint(hint));
        }
        // An export whose beginning is damaged is reported as damaged, not taken for a document.
        Ok(if archive::is_go(&begin) && !begin.starts_with(b"{\"form") { Kind::Go } else { Kind::Export })
    }

    /// Reads the file to its end, and returns a summary.
    pub(crate) async fn check(&mut self) -> Result<Contents, Failure> {
        let checked = match &mut self.from {
            Input::File(file) => archive::check(with_progress(file.clone())).await,
            Input::Pipe(pipe) => {
                archive::check(WithProgress::new(pipe, Bar::of_bytes("checking", None))).await
            }
        };
        checked.map_err(|error| self.refused(&error))
    }

    /// Reads a document of gcli2api-go.
    pub(crate) async fn go(self) -> Result<GoDocument, Failure> {
        let Self { name, from } = self;
        let document = match from {
            Input::File(file) => archive::read_go(with_progress(file)),
            Input::Pipe(pipe) => {
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
                failure.hint("use the version of this command that wrote the file, or a later one")
            }
            _ => failure,
        }
    }

    /// The records, as a source. Without `contents` the file is checked while it is read.
    pub(crate) fn source(self, contents: Option<&Contents>) -> Source {
        match self.from {
            Input::File(file) => {
                // A checked file is identified by its records, so that it can be moved; an unchecked one by
                // its inode and change time.
                let identity = match contents {
                    Some(contents) => Some(format!("export {}", contents.digest)),
                    None => file.identity().ok(),
                };
                let mut source = Source::new(identity, true, move || ahead(archive::read(file.clone())));
                source.total =
                    contents.map(|contents| contents.credentials + contents.configs + contents.usage_records);
                source
            }
            Input::Pipe(pipe) => {
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

fn with_progress(file: FileReader) -> WithProgress<FileReader> {
    let bar = Bar::of_bytes("checking", file.length());
    WithProgress::new(file, bar)
}

/// The compressor of a file, by its first bytes.
fn compressor(begin: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], _); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];
    known.into_iter().find_map(|(magic, name)| begin.starts_with(magic).then_some(name))
}

/// The records of a document, as a source.
pub(crate) fn document_source(records: Vec<Record>) -> Source {
    let mut hasher = RecordHasher::default();
    records.iter().for_each(|record| hasher.update(record));
    let records = Arc::new(records);
    let identity = format!("export {}", hasher.finish());
    Source::new(Some(identity), true, move || {
        let records = records.clone();
        Box::pin(stream::iter((0..records.len()).map(move |at| Ok(records[at].clone()))))
    })
}
