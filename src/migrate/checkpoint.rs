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

use super::{CopyFailure, CopyOptions, Filter, MAX_NAMED, OnConflict, Tallies};
use crate::{Error, ErrorKind, Key, RecordKind, Result, codec::RecordKey};

/// A file that says up to where a copy has written everything, so that it can be resumed.
///
/// It is made when the copy begins, replaced five times a second, and removed when all is done. It holds numbers, and the keys of
/// the last record and of those that failed; nobody else may read it (0600).
///
/// What the source or the target changes up to that place while the copy is interrupted is not seen when it goes on: `verify` finds
/// it.
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
    on_conflict: OnConflict,
    /// All records of the source up to this one are done.
    through: Option<Name>,
    /// The last of them that the target has.
    held: Option<Name>,
    tallies: Tallies,
    failures: Vec<Failed>,
}

#[derive(Serialize, Deserialize)]
struct Failed {
    #[serde(flatten)]
    name: Name,
    error: ErrorKind,
    message: String,
}

#[derive(Serialize, Deserialize)]
struct Name {
    kind: RecordKind,
    key: Key,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<Key>,
}

impl Checkpoint {
    /// A checkpoint in this file, of a copy between two stores, by names that tell them from others (a URL without its password, for
    /// one). A copy that is resumed must be of the same two, with the same filter and policy; only what began under
    /// [`OnConflict::Fail`] may go on under another policy.
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

    /// Whether there is a place that a copy with it goes on from. If not, it begins at the beginning.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is no checkpoint.
    pub async fn is_begun(&self) -> Result<bool> {
        let path = self.path.clone();
        let found = blocking(move || read(&path)).await?;
        Ok(self.resume && found.is_some_and(|found| found.through.is_some()))
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

/// What tells a copy from others: its stores and its filter.
fn name(checkpoint: &Checkpoint, filter: &Filter) -> String {
    let mut kinds: Vec<&str> = filter.kinds.iter().map(|kind| kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut names = vec![checkpoint.stores.clone(), kinds.join(",")];
    for globs in [&filter.include, &filter.exclude] {
        let patterns: Vec<String> = globs.iter().map(super::Glob::pattern).collect();
        names.push(digest(&patterns.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    digest(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Held by whoever changes a checkpoint: the work of a copy that was dropped may still be under way when the next one begins.
static CHANGES: Mutex<()> = Mutex::new(());

/// The checkpoint of a copy that is under way.
pub(super) struct Place {
    is_dropped: Arc<AtomicBool>,
    path: PathBuf,
    copy: String,
    on_conflict: OnConflict,
    pub(super) resumed: bool,
    pub(super) through: Option<RecordKey>,
    pub(super) held: Option<RecordKey>,
    pub(super) tallies: Tallies,
    pub(super) failures: Vec<CopyFailure>,
}

impl Place {
    /// Reads the file if the copy is resumed, and makes it otherwise.
    pub(super) async fn open(checkpoint: &Checkpoint, options: &CopyOptions) -> Result<Self> {
        let mut place = Self {
            is_dropped: Arc::default(),
            path: checkpoint.path.clone(),
            copy: name(checkpoint, &options.filter),
            on_conflict: options.on_conflict,
            resumed: false,
            through: None,
            held: None,
            tallies: Tallies::default(),
            failures: Vec::new(),
        };
        let path = place.path.clone();
        let found = blocking(move || read(&path)).await?;
        if let Some(found) = found {
            if found.copy != place.copy {
                return Err(invalid(
                    "the checkpoint is of another copy, of other stores or with another filter; without it the copy begins anew",
                ));
            }
            if checkpoint.resume {
                place.go_on(found)?;
            }
        }
        if !place.resumed {
            place.save().await?;
        }
        Ok(place)
    }

    fn go_on(&mut self, found: Content) -> Result<()> {
        // Up to a conflict nothing was kept or replaced, so it can go on either way.
        if ![self.on_conflict, OnConflict::Fail].contains(&found.on_conflict) {
            return Err(invalid(
                "the checkpoint is of a copy with another policy for conflicts; without it the copy begins anew",
            ));
        }
        self.resumed = true;
        self.through = found.through.map(position).transpose()?;
        self.held = found.held.map(position).transpose()?;
        self.tallies = found.tallies;
        self.failures = found.failures.into_iter().map(Failed::failure).collect();
        Ok(())
    }

    /// All up to there is done; this is what became of it.
    pub(super) fn advance(
        &mut self,
        through: RecordKey,
        held: Option<RecordKey>,
        tallies: Tallies,
        failures: &[CopyFailure],
    ) {
        self.through = Some(through);
        self.held = held.or(self.held.take());
        self.tallies = tallies;
        self.failures.extend(failures.iter().take(MAX_NAMED.saturating_sub(self.failures.len())).cloned());
    }

    /// Puts it on disk.
    pub(super) async fn save(&self) -> Result<()> {
        let content = Content {
            format: FORMAT.to_owned(),
            version: VERSION,
            copy: self.copy.clone(),
            on_conflict: self.on_conflict,
            through: self.through.as_ref().and_then(Name::of),
            held: self.held.as_ref().and_then(Name::of),
            tallies: self.tallies,
            failures: self.failures.iter().map(Failed::of).collect(),
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
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removed", error)),
                _ => Ok(()),
            }
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

fn position(name: Name) -> Result<RecordKey> {
    match (name.kind, name.field) {
        (RecordKind::Credential, None) => Ok(RecordKey::Credential(name.key)),
        (RecordKind::Config, None) => Ok(RecordKey::Config(name.key)),
        (RecordKind::Usage, Some(field)) => Ok(RecordKey::Usage(name.key, field)),
        _ => Err(corrupt()),
    }
}

impl Name {
    fn of(position: &RecordKey) -> Option<Self> {
        let (kind, key, field) = match position {
            RecordKey::Credential(id) => (RecordKind::Credential, id, None),
            RecordKey::Config(key) => (RecordKind::Config, key, None),
            RecordKey::Usage(key, field) => (RecordKind::Usage, key, Some(field.clone())),
            RecordKey::Audit(_) | RecordKey::Plan(_) => return None,
        };
        Some(Self { kind, key: key.clone(), field })
    }
}

impl Failed {
    fn of(failure: &CopyFailure) -> Self {
        let CopyFailure { kind, key, field, error } = failure;
        let name = Name { kind: *kind, key: key.clone(), field: field.clone() };
        Self { name, error: error.kind(), message: error.to_string() }
    }

    fn failure(self) -> CopyFailure {
        let Name { kind, key, field } = self.name;
        CopyFailure { kind, key, field, error: Error::new(self.error, self.message).with_retryable(false) }
    }
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
