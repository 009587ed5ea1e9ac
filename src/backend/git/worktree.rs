//! The work tree: the files of the newest commit, for people to read, and git's index of them.
//!
//! They follow the branch and are never read for data. A file whose content is in none of the store's commits
//! is a person's work and is left unchanged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use git2::{ErrorCode, FileMode, Index, IndexEntry, IndexTime, ObjectType, Oid, Repository};

use super::{
    branch::{Blob, Change},
    error::failed,
    name::record_of,
    repository::{LockedRepository, TEMPORARY, read_id},
};
use crate::{
    Error, ErrorKind, Result,
    backend::local::atomic_file::{remove_if_exists, replace},
};

/// Files synced at once while the store is idle.
const FILES_PER_SYNC: usize = 64;

/// The file that names the last commit whose files are known to be on disk.
const CHECKPOINT: &str = "checkpoint";

/// The work tree of a repository. Used by one thread.
pub(super) struct Worktree {
    root: PathBuf,
    index: Index,
    checkpoint: PathBuf,
    temporary: PathBuf,
    /// Files that may not be on disk yet.
    pub(super) unsynced: BTreeSet<String>,
    /// Subdirectories of the store's directories that may not be on disk, because their files were not.
    unsynced_below: BTreeSet<PathBuf>,
    /// Files that did not follow the branch: they contain a person's work, or could not be written.
    pub(super) skipped: BTreeSet<String>,
    /// Files that are not in the index yet, because another program held its lock.
    pub(super) unindexed: BTreeMap<String, Option<Blob>>,
}

/// What is at the path of a file.
enum Found {
    Missing,
    /// A file and its content. The content of an unchanged file is taken from the index.
    File(Oid, Metadata),
    /// A symbolic link, as git would store it.
    Link(Oid),
    /// A directory, a device, or something behind a symbolic link.
    Other,
}

impl Worktree {
    pub(super) fn open(locked: &LockedRepository, repository: &Repository) -> Result<Self> {
        let index = repository.index().map_err(|error| failed("the index can't be read", error))?;
        Ok(Self {
            root: locked.path.clone(),
            index,
            checkpoint: locked.own_file(CHECKPOINT),
            temporary: locked.own_file("file.new"),
            unsynced: BTreeSet::new(),
            unsynced_below: BTreeSet::new(),
            skipped: BTreeSet::new(),
            unindexed: BTreeMap::new(),
        })
    }

    /// The commit whose files are known to be on disk. None for a repository that no store has used yet.
    pub(super) fn checkpoint(&self) -> Option<Oid> {
        read_id(&self.checkpoint)
    }

    /// Brings the files from one commit to the next.
    pub(super) fn follow(&mut self, repository: &Repository, changes: &[Change]) {
        for change in changes {
            let known = [change.old.map(|blob| blob.id), change.new.map(|blob| blob.id)];
            match self.put(repository, &change.path, &known, change.new) {
                Ok(true) => drop(self.skipped.remove(&change.path)),
                Ok(false) | Err(_) => drop(self.skipped.insert(change.path.clone())),
            }
            self.unindexed.insert(change.path.clone(), change.new);
        }
        self.write_index();
    }

    /// Writes one file, unless it contains a person's work. Returns whether it has the wanted content.
    fn put(
        &mut self,
        repository: &Repository,
        path: &str,
        known: &[Option<Oid>],
        new: Option<Blob>,
    ) -> io::Result<bool> {
        if new.is_some_and(|blob| !is_plain(blob)) {
            // A symbolic link: only git creates those.
            return Ok(false);
        }
        let mut is_new = false;
        match self.inspect(path)? {
            Found::File(id, _) if new.is_some_and(|blob| blob.id == id) => return Ok(true),
            Found::File(id, _) | Found::Link(id) if known.contains(&Some(id)) => {}
            Found::Missing if new.is_none() => return Ok(true),
            Found::Missing => is_new = true,
            // A power failure leaves empty files.
            Found::File(_, metadata) if metadata.len() == 0 && self.unsynced.contains(path) => {}
            Found::File(..) | Found::Link(_) | Found::Other => return Ok(false),
        }
        let target = self.root.join(path);
        match new {
            None => {
                fs::remove_file(&target)?;
                // A directory that is not empty stays, and so do those above it.
                parents(path).all(|above| fs::remove_dir(self.root.join(above)).is_ok());
            }
            Some(blob) => {
                let content = repository.find_blob(blob.id).map_err(io::Error::other)?;
                if let Some(above) = target.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(above)?;
                }
                let mode = if blob.mode == FileMode::BlobExecutable { 0o700 } else { 0o600 };
                let write = |path: &Path| {
                    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
                    file.write_all(content.content())
                };
                if is_new {
                    // Written directly: the next start recognizes a partial file.
                    write(&target)?;
                } else {
                    self.replace(&target, write)?;
                }
            }
        }
        self.unsynced.insert(path.to_owned());
        Ok(true)
    }

    /// Writes a temporary file and renames it. `.git` can be a mount of its own, and files can't be renamed
    /// across mounts.
    fn replace(&self, target: &Path, write: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let move_from = |temporary: &Path| {
            remove_if_exists(temporary)?;
            write(temporary)?;
            fs::rename(temporary, target).inspect_err(|_| drop(remove_if_exists(temporary)))
        };
        match move_from(&self.temporary) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                move_from(&self.root.join(TEMPORARY))
            }
            moved => moved,
        }
    }

    /// What is at the path of a file. Follows no symbolic link.
    fn inspect(&self, path: &str) -> io::Result<Found> {
        if !self.is_direct(path)? {
            return Ok(Found::Other);
        }
        let target = self.root.join(path);
        let found = match fs::symlink_metadata(&target) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Found::Missing);
            }
            found => found?,
        };
        if found.is_symlink() {
            let link = fs::read_link(&target)?;
            let id = Oid::hash_object(ObjectType::Blob, link.as_os_str().as_bytes());
            return id.map(Found::Link).map_err(io::Error::other);
        }
        if !found.is_file() {
            return Ok(Found::Other);
        }
        if let Some(entry) =
            self.index.get_path(Path::new(path), 0).filter(|entry| is_unchanged(entry, &found))
        {
            return Ok(Found::File(entry.id, found));
        }
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&target)?;
        let mut content = Vec::new();
        io::Read::read_to_end(&mut file, &mut content)?;
        let id = Oid::hash_object(ObjectType::Blob, &content).map_err(io::Error::other)?;
        Ok(Found::File(id, found))
    }

    /// Whether all existing parents of a file are directories.
    fn is_direct(&self, path: &str) -> io::Result<bool> {
        for above in parents(path) {
            match fs::symlink_metadata(self.root.join(above)) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Updates the index, unless another program holds its lock; then the next call does.
    fn write_index(&mut self) {
        if self.unindexed.is_empty() {
            return;
        }
        let mut write = || {
            self.index.read(false)?;
            for (path, blob) in &self.unindexed {
                match blob {
                    Some(blob) => {
                        // Without times in the index, git reads the file.
                        let found = Some(path).filter(|path| !self.skipped.contains(*path));
                        let found = found.and_then(|path| fs::symlink_metadata(self.root.join(path)).ok());
                        self.index.add(&entry(found.as_ref(), path, *blob))?;
                    }
                    None => match self.index.remove(Path::new(path), 0) {
                        Err(error) if error.code() != ErrorCode::NotFound => return Err(error),
                        _ => {}
                    },
                }
            }
            self.index.write()
        };
        match write() {
            Ok(()) => self.unindexed.clear(),
            // Discards the changes in memory: `unindexed` still has them.
            Err(_) => drop(self.index.read(true)),
        }
    }

    /// Compares the files with the newest commit when the store is opened. `steps` are the changes of each
    /// commit since the checkpoint, oldest first: a killed process may have left any of their versions.
    pub(super) fn restore(
        &mut self,
        repository: &Repository,
        head: &[Change],
        steps: &[Vec<Change>],
    ) -> Result<()> {
        let mut versions: BTreeMap<&str, Vec<Option<Oid>>> = BTreeMap::new();
        for change in steps.iter().flatten() {
            let known = versions.entry(&change.path).or_default();
            known.extend([change.old.map(|blob| blob.id), change.new.map(|blob| blob.id)]);
        }
        let mut newest: BTreeMap<&str, Option<Blob>> = versions.keys().map(|path| (*path, None)).collect();
        newest.extend(head.iter().map(|change| (change.path.as_str(), change.new)));
        let unread = |error| Error::io("the work tree can't be read", error);
        let (mut outdated, mut changed) = (Vec::new(), 0);
        for (path, blob) in newest {
            let is_ours = record_of(path).is_some();
            let known = versions.get(path).map_or(&[][..], Vec::as_slice);
            // A symbolic link is not a record; git handles it.
            if !is_ours && known.is_empty() || blob.is_some_and(|blob| !is_plain(blob)) {
                continue;
            }
            let id = blob.map(|blob| blob.id);
            let found = self.inspect(path).map_err(unread)?;
            if known.contains(&None)
                && let (Found::File(..), Some(blob)) = (&found, blob)
                && self.is_partial(repository, path, blob).map_err(unread)?
            {
                fs::remove_file(self.root.join(path)).map_err(unread)?;
                outdated.push((path, known, Some(blob)));
                continue;
            }
            let is_outdated = match found {
                Found::File(found, metadata) if Some(found) == id => {
                    self.remember(path, blob, &metadata);
                    continue;
                }
                Found::Missing if id.is_none() => {
                    self.unindexed.insert(path.to_owned(), None);
                    continue;
                }
                Found::File(found, metadata) => {
                    known.contains(&Some(found)) || !known.is_empty() && metadata.len() == 0
                }
                Found::Link(found) => known.contains(&Some(found)),
                Found::Missing => known.contains(&None),
                Found::Other => false,
            };
            if is_outdated {
                outdated.push((path, known, blob));
            } else if is_ours && id.is_some() {
                changed += 1;
            }
        }
        if changed > 0 {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the work tree in {} has changes to {changed} of the store's files that are in no commit: commit or discard them with git",
                    self.root.display()
                ),
            )
            .with_retryable(false));
        }
        for (path, known, blob) in outdated {
            self.unsynced.insert(path.to_owned());
            self.put(repository, path, known, blob)
                .map_err(|error| Error::io("the work tree can't be written", error))?;
            self.unindexed.insert(path.to_owned(), blob);
        }
        self.write_index();
        Ok(())
    }

    /// Whether a file has only the beginning of its content, because its writer was killed.
    fn is_partial(&self, repository: &Repository, path: &str, blob: Blob) -> io::Result<bool> {
        let found = fs::read(self.root.join(path))?;
        let wanted = repository.find_blob(blob.id).map_err(io::Error::other)?;
        Ok(found.len() < wanted.content().len() && wanted.content().starts_with(&found))
    }

    /// Updates the index for a file whose content is right.
    fn remember(&mut self, path: &str, blob: Option<Blob>, metadata: &Metadata) {
        let is_known = self.index.get_path(Path::new(path), 0).is_some_and(|entry| {
            Some(entry.id) == blob.map(|blob| blob.id) && is_unchanged(&entry, metadata)
        });
        if !is_known {
            self.unindexed.insert(path.to_owned(), blob);
        }
        // It was readable by others while it belonged to another user.
        if metadata.permissions().mode() & 0o077 != 0 {
            let mode = metadata.permissions().mode() & 0o700;
            let private = fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(mode));
            if private.is_ok() {
                self.unindexed.insert(path.to_owned(), blob);
            }
        }
    }

    /// Syncs some files, or all. Once no file is left, syncs the directories and writes the checkpoint.
    pub(super) fn sync(&mut self, head: Option<Oid>, all: bool) {
        self.write_index();
        let count = if all { usize::MAX } else { FILES_PER_SYNC };
        let some: Vec<String> = self.unsynced.iter().take(count).cloned().collect();
        for path in some {
            let target = self.root.join(&path);
            // The removal of a missing file is on disk once its directory is.
            if File::open(&target).is_ok_and(|file| file.sync_data().is_err()) {
                return;
            }
            self.unsynced.remove(&path);
            let below = parents(&path).filter(|above| above.components().count() > 1);
            self.unsynced_below.extend(below.map(|above| self.root.join(above)));
        }
        if !self.unsynced.is_empty() {
            return;
        }
        let names = ["credentials", "config", "."].map(|name| self.root.join(name));
        let on_disk = self
            .unsynced_below
            .iter()
            .chain(&names)
            .filter_map(|name| File::open(name).ok())
            .all(|directory| directory.sync_all().is_ok());
        if on_disk {
            self.unsynced_below.clear();
            self.mark(head);
        }
    }

    /// Forgets pending work: another branch is checked out. git restores the store's files when its branch is
    /// checked out again.
    pub(super) fn reset(&mut self) {
        self.unsynced.clear();
        self.unsynced_below.clear();
        self.skipped.clear();
        self.unindexed.clear();
    }

    /// Records on disk that the files are those of this commit.
    pub(super) fn mark(&self, head: Option<Oid>) {
        let head = head.unwrap_or(Oid::ZERO_SHA1);
        if self.checkpoint() != Some(head) {
            // An older checkpoint is still correct.
            drop(replace(&self.checkpoint, format!("{head}\n").as_bytes()));
        }
    }
}

/// The directories above a file of the work tree, from the innermost to the outermost.
fn parents(path: &str) -> impl Iterator<Item = &Path> {
    Path::new(path).ancestors().skip(1).filter(|above| !above.as_os_str().is_empty())
}

const fn is_plain(blob: Blob) -> bool {
    matches!(blob.mode, FileMode::Blob | FileMode::BlobExecutable | FileMode::BlobGroupWritable)
}

/// As in git: a file with the times, size and inode of the index is unchanged.
fn is_unchanged(seen: &IndexEntry, found: &Metadata) -> bool {
    let now = entry(Some(found), "", Blob { id: seen.id, mode: FileMode::Blob });
    let is_same = |one: IndexTime, other: IndexTime| {
        (one.seconds(), one.nanoseconds()) == (other.seconds(), other.nanoseconds())
    };
    is_same(seen.mtime, now.mtime)
        && is_same(seen.ctime, now.ctime)
        && seen.ino == now.ino
        && seen.file_size == now.file_size
        && seen.mtime.seconds() != 0
}

// The index has the lower 32 bits of each.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn entry(found: Option<&Metadata>, path: &str, blob: Blob) -> IndexEntry {
    let time = |seconds: fn(&Metadata) -> i64, nanoseconds: fn(&Metadata) -> i64| {
        found.map_or(IndexTime::new(0, 0), |found| {
            IndexTime::new(seconds(found) as i32, nanoseconds(found) as u32)
        })
    };
    let number = |number: fn(&Metadata) -> u64| found.map_or(0, |found| number(found) as u32);
    IndexEntry {
        ctime: time(MetadataExt::ctime, MetadataExt::ctime_nsec),
        mtime: time(MetadataExt::mtime, MetadataExt::mtime_nsec),
        dev: number(MetadataExt::dev),
        ino: number(MetadataExt::ino),
        mode: u32::from(blob.mode),
        uid: number(|found| found.uid().into()),
        gid: number(|found| found.gid().into()),
        file_size: number(Metadata::len),
        id: blob.id,
        flags: 0,
        flags_extended: 0,
        path: path.as_bytes().to_vec(),
    }
}
