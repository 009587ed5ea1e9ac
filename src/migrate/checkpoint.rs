//! The position of a copy, saved in a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{CopyFailure, Filter, MAX_NAMED, OnConflict, Tallies};
use crate::{
    Error, ErrorKind, Key, RecordKind, Result,
    backend::local::atomic_file::{remove_if_exists, replace, sync_parent},
    codec::RecordKey,
};

/// A file with the position up to which a copy has written all records, so that the copy can be resumed.
///
/// It is created when the copy begins, replaced five times a second, and removed when the copy is complete.
/// It contains counts and the keys of the last record and of failed ones; only its owner can read it (0600).
///
/// A resumed copy does not see changes before that position in either store; `verify` finds them.
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
    /// All records of the source up to this one are processed.
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
    /// A checkpoint in this file, for a copy between two stores. Their names must identify them, such as a
    /// URL without its password. A copy can be resumed only between the same two stores, with the same filter
    /// and policy; one that began with [`OnConflict::Fail`] may continue with another policy.
    ///
    /// An existing checkpoint of the same copy is overwritten. If the file is anything else, the copy fails
    /// before it writes a record, and the error names the file.
    pub fn new(path: impl Into<PathBuf>, source: &str, target: &str) -> Self {
        Self { path: path.into(), stores: digest(&[source, target]), resume: false }
    }

    /// A file name that is unique to these two stores: 16 hexadecimal digits.
    #[must_use]
    pub fn name(source: &str, target: &str) -> String {
        digest(&[source, target])[..16].to_owned()
    }

    /// Resumes the copy from the saved position, or starts it if the file does not exist.
    #[must_use]
    pub const fn resuming(mut self) -> Self {
        self.resume = true;
        self
    }

    /// Whether a copy with this checkpoint would resume from a saved position, and not start over.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not a checkpoint.
    pub async fn is_begun(&self) -> Result<bool> {
        let path = self.path.clone();
        let found = blocking(move || read(&path)).await?;
        Ok(self.resume && found.is_some_and(|found| found.through.is_some()))
    }
}

/// The SHA-256 of texts with their lengths, so that different lists have different digests.
fn digest(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.len().to_be_bytes());
        hash.update(text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Identifies a copy by its stores and its filter.
fn copy_id(checkpoint: &Checkpoint, filter: &Filter) -> String {
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

/// Locked to change a checkpoint, because the write of a dropped copy may still run when the next copy
/// begins.
static WRITES: Mutex<()> = Mutex::new(());

/// The position and the results of a running copy, saved in its checkpoint.
pub(super) struct Progress {
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

impl Progress {
    /// Reads the checkpoint if the copy is resumed, and creates it otherwise.
    pub(super) async fn open(
        checkpoint: &Checkpoint,
        filter: &Filter,
        on_conflict: OnConflict,
    ) -> Result<Self> {
        let mut progress = Self {
            is_dropped: Arc::default(),
            path: checkpoint.path.clone(),
            copy: copy_id(checkpoint, filter),
            on_conflict,
            resumed: false,
            through: None,
            held: None,
            tallies: Tallies::default(),
            failures: Vec::new(),
        };
        let path = progress.path.clone();
        let found = blocking(move || read(&path)).await?;
        if let Some(found) = found {
            if found.copy != progress.copy {
                let what = "the checkpoint is from another copy (other stores or another filter)";
                return Err(refused(&progress.path, ErrorKind::InvalidValue, what));
            }
            if checkpoint.resume {
                progress.resume(found)?;
            }
        }
        if !progress.resumed {
            progress.save().await?;
        }
        Ok(progress)
    }

    fn resume(&mut self, found: Content) -> Result<()> {
        // A copy under `Fail` stops at its first conflict, so it has not yet applied a policy.
        if ![self.on_conflict, OnConflict::Fail].contains(&found.on_conflict) {
            let what = "the checkpoint is from a copy with another conflict policy";
            return Err(refused(&self.path, ErrorKind::InvalidValue, what));
        }
        self.resumed = true;
        let position = |name| position(name).ok_or_else(|| corrupt(&self.path));
        self.through = found.through.map(position).transpose()?;
        self.held = found.held.map(position).transpose()?;
        self.tallies = found.tallies;
        self.failures = found.failures.into_iter().map(Failed::failure).collect();
        Ok(())
    }

    /// Records that everything up to `through` is processed, with these results.
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

    /// The target is not the one that this copy has written to.
    #[cold]
    pub(super) fn another_target(&self) -> Error {
        let what = "the target lacks a record that the checkpoint lists as written";
        refused(&self.path, ErrorKind::Conflict, what).with_retryable(false)
    }

    /// Writes the checkpoint to disk.
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
            let _writes = WRITES.lock().unwrap_or_else(PoisonError::into_inner);
            if is_dropped.load(Ordering::Relaxed) {
                return Ok(());
            }
            let json = serde_json::to_vec(&content).map_err(io::Error::from);
            json.and_then(|json| replace(&path, &json))
                .and_then(|()| sync_parent(&path))
                .map_err(|error| failed(&path, "written", error))
        })
        .await
    }

    /// Removes the checkpoint of a complete copy.
    pub(super) async fn remove(self) -> Result<()> {
        let path = self.path.clone();
        blocking(move || {
            let _writes = WRITES.lock().unwrap_or_else(PoisonError::into_inner);
            remove_if_exists(&path).map_err(|error| failed(&path, "removed", error))
        })
        .await
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Internal, "the thread that reads or writes the checkpoint failed"))
    })
}

fn read(path: &Path) -> Result<Option<Content>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, "read", error)),
    };
    /// The fields of every version.
    #[derive(Deserialize)]
    struct Header {
        format: String,
        version: u32,
    }
    let foreign = || {
        let message = format!("`{}` exists but is not a checkpoint; choose another path", path.display());
        Error::new(ErrorKind::InvalidValue, message)
    };
    let header: Header = serde_json::from_slice(&text).map_err(|_| foreign())?;
    if header.format != FORMAT {
        return Err(foreign());
    }
    if header.version != VERSION {
        let what = "the checkpoint was written by another version";
        return Err(refused(path, ErrorKind::Unsupported, what));
    }
    serde_json::from_slice(&text).map(Some).map_err(|_| corrupt(path))
}

fn position(name: Name) -> Option<RecordKey> {
    match (name.kind, name.field) {
        (RecordKind::Credential, None) => Some(RecordKey::Credential(name.key)),
        (RecordKind::Config, None) => Some(RecordKey::Config(name.key)),
        (RecordKind::Usage, Some(field)) => Some(RecordKey::Usage(name.key, field)),
        _ => None,
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
fn failed(path: &Path, what: &str, error: io::Error) -> Error {
    let kind = if error.kind() == io::ErrorKind::PermissionDenied {
        ErrorKind::Denied
    } else {
        ErrorKind::Unavailable
    };
    let message = format!("the checkpoint `{}` can't be {what}", path.display());
    Error::new(kind, message).with_retryable(false).with_source(error)
}

#[cold]
fn refused(path: &Path, kind: ErrorKind, what: &str) -> Error {
    Error::new(kind, format!("{what}; delete `{}` to start over", path.display()))
}

#[cold]
fn corrupt(path: &Path) -> Error {
    refused(path, ErrorKind::Corrupt, "the checkpoint is damaged")
}
