//! Where a copy is, kept in a file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Filter, Tallies};
use crate::{Error, ErrorKind, Key, RecordKind, Result, codec::RecordKey};

/// A file that says up to where a copy has written everything, so that it can be resumed.
///
/// It is made when the copy begins, replaced five times a second, and removed when all is done. It holds the key of one record and
/// numbers; nobody else may read it (0600).
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    stores: String,
    resume: bool,
}

const FORMAT: &str = "gateway-storage checkpoint";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Content {
    format: String,
    version: u32,
    copy: String,
    through: Option<Through>,
    tallies: Tallies,
}

#[derive(Serialize, Deserialize)]
struct Through {
    kind: RecordKind,
    key: Key,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<Key>,
}

impl Checkpoint {
    /// A checkpoint in this file, of a copy between two stores, by names that tell them from others (a URL without its password, for
    /// one). A copy that is resumed must be of the same two, with the same filter.
    ///
    /// A file that is there is overwritten if it is a checkpoint of the same copy; if it is anything else the copy does not begin.
    pub fn new(path: impl Into<PathBuf>, source: &str, target: &str) -> Self {
        Self { path: path.into(), stores: digest(&[source, target]), resume: false }
    }

    /// A name for a file, which other stores' checkpoints don't have: 16 hexadecimal digits.
    #[must_use]
    pub fn name(source: &str, target: &str) -> String {
        digest(&[source, target])[..16].to_owned()
    }

    /// The same, but the copy goes on from where it was. If there is no file it begins at the beginning.
    #[must_use]
    pub const fn resuming(mut self) -> Self {
        self.resume = true;
        self
    }
}

/// The SHA-256 of texts, which can't be cut in another way.
fn digest(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.len().to_be_bytes());
        hash.update(text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Held by whoever changes a checkpoint: the work of a copy that was dropped may still be under way when the next one begins.
static CHANGES: Mutex<()> = Mutex::new(());

/// The checkpoint of a copy that is under way.
pub(super) struct Place {
    is_dropped: Arc<AtomicBool>,
    path: PathBuf,
    copy: String,
    pub(super) resumed: bool,
    pub(super) through: Option<RecordKey>,
    pub(super) tallies: Tallies,
}

impl Place {
    /// Reads the file if the copy is resumed, and makes it otherwise.
    pub(super) async fn open(checkpoint: &Checkpoint, filter: &Filter) -> Result<Self> {
        let mut names: Vec<String> = vec![checkpoint.stores.clone()];
        names.push(filter.kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(","));
        for globs in [&filter.include, &filter.exclude] {
            let patterns: Vec<String> = globs.iter().map(super::Glob::pattern).collect();
            names.push(digest(&patterns.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        let copy = digest(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut place = Self {
            is_dropped: Arc::default(),
            path: checkpoint.path.clone(),
            copy,
            resumed: false,
            through: None,
            tallies: Tallies::default(),
        };
        let path = place.path.clone();
        let found = blocking(move || read(&path)).await?;
        if let Some(found) = found {
            if found.copy != place.copy {
                return Err(invalid("the checkpoint is of another copy: other stores, or another filter"));
            }
            if checkpoint.resume {
                place.resumed = true;
                place.through = found.through.map(position).transpose()?;
                place.tallies = found.tallies;
            }
        }
        if !place.resumed {
            place.save().await?;
        }
        Ok(place)
    }

    /// Puts it on disk.
    pub(super) async fn save(&self) -> Result<()> {
        let content = Content {
            format: FORMAT.to_owned(),
            version: VERSION,
            copy: self.copy.clone(),
            through: self.through.as_ref().and_then(through),
            tallies: self.tallies,
        };
        let (path, is_dropped) = (self.path.clone(), self.is_dropped.clone());
        blocking(move || {
            let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
            if is_dropped.load(Ordering::Relaxed) {
                return Ok(());
            }
            let json = serde_json::to_vec(&content).map_err(io::Error::from);
            json.and_then(|json| write(&path, &json)).map_err(|error| failed("written", error))
        })
        .await
    }

    /// Removes it: all is done.
    pub(super) async fn remove(self) -> Result<()> {
        let path = self.path.clone();
        blocking(move || {
            let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
            fs::remove_file(&path).map_err(|error| failed("removed", error))
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the checkpoint could not be handled")))
}

fn read(path: &Path) -> Result<Option<Content>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", error)),
    };
    /// What every version has.
    #[derive(Deserialize)]
    struct Header {
        format: String,
        version: u32,
    }
    let foreign = || invalid("the checkpoint's file is there and is no checkpoint; name another one");
    let header: Header = serde_json::from_slice(&text).map_err(|_| foreign())?;
    if header.format != FORMAT {
        return Err(foreign());
    }
    if header.version != VERSION {
        return Err(Error::new(ErrorKind::Unsupported, "the checkpoint was written by another version"));
    }
    serde_json::from_slice(&text).map(Some).map_err(|_| corrupt())
}

/// Aside, on disk, and then in its place: a reader sees the old one or the new one.
fn write(path: &Path, json: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&aside)?;
    file.write_all(json)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn position(through: Through) -> Result<RecordKey> {
    match (through.kind, through.field) {
        (RecordKind::Credential, None) => Ok(RecordKey::Credential(through.key)),
        (RecordKind::Config, None) => Ok(RecordKey::Config(through.key)),
        (RecordKind::Usage, Some(field)) => Ok(RecordKey::Usage(through.key, field)),
        _ => Err(corrupt()),
    }
}

fn through(position: &RecordKey) -> Option<Through> {
    let (kind, key, field) = match position {
        RecordKey::Credential(id) => (RecordKind::Credential, id, None),
        RecordKey::Config(key) => (RecordKind::Config, key, None),
        RecordKey::Usage(key, field) => (RecordKind::Usage, key, Some(field.clone())),
        RecordKey::Audit(_) | RecordKey::Plan(_) => return None,
    };
    Some(Through { kind, key: key.clone(), field })
}

#[cold]
fn failed(what: &str, error: io::Error) -> Error {
    let kind = if error.kind() == io::ErrorKind::PermissionDenied {
        ErrorKind::Denied
    } else {
        ErrorKind::Unavailable
    };
    Error::new(kind, format!("the checkpoint can't be {what}")).with_retryable(false).with_source(error)
}

#[cold]
fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidValue, message)
}

#[cold]
fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the checkpoint is damaged; without it the copy begins anew")
}
