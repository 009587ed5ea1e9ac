//! The files of the newest commit, for people to look at, and the index that git compares them with.
//!
//! They follow the branch and are never read for data. A file that holds what no commit of ours had is a person's work: it
//! is left as it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
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
    failure::{failed, io_failed},
    ledger::{Blob, Change},
    name::record_of,
    place::{ASIDE, Place, read_id, write_file},
};
use crate::{Error, ErrorKind, Result};

/// How many files are synced in one go while nobody waits.
const SYNCED_AT_ONCE: usize = 64;

/// The file that names the last commit whose files are known to be on disk.
const CHECKPOINT: &str = "checkpoint";

/// The work tree of a repository. Belongs to one thread.
pub(super) struct Worktree {
    root: PathBuf,
    index: Index,
    checkpoint: PathBuf,
    aside: PathBuf,
    /// Files that may not be on disk yet.
    unsynced: BTreeSet<String>,
    /// Directories below those of the store that may not be on disk, since files in them were not.
    unsynced_below: BTreeSet<PathBuf>,
    /// Files that could not follow: they hold a person's work, or could not be written.
    left: BTreeSet<String>,
    /// Files that the index does not know yet, since another program held its lock.
    unindexed: BTreeMap<String, Option<Blob>>,
}

/// What is at the place of a file.
enum Found {
    Nothing,
    /// A file and its content; if that was not looked at, it is as the index says.
    File(Oid, Metadata),
    /// A symbolic link, as git would store it.
    Link(Oid),
    /// A directory, a device, or something behind a symbolic link.
    Other,
}

impl Worktree {
    pub(super) fn open(place: &Place, repository: &Repository) -> Result<Self> {
        let index = repository.index().map_err(|error| failed("the index can't be read", error))?;
        Ok(Self {
            root: place.path.clone(),
            index,
            checkpoint: place.own(CHECKPOINT),
            aside: place.own("file.new"),
            unsynced: BTreeSet::new(),
            unsynced_below: BTreeSet::new(),
            left: BTreeSet::new(),
            unindexed: BTreeMap::new(),
        })
    }

    /// The commit whose files are known to be on disk; none at all for a repository that is not used by us yet.
    pub(super) fn checkpoint(&self) -> Option<Oid> {
        read_id(&self.checkpoint)
    }

    /// How many files hold work that is in no commit, or could not be written.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// Whether another program holds the index.
    pub(super) fn is_behind(&self) -> bool {
        !self.unindexed.is_empty()
    }

    /// Brings files from one commit to the next.
    pub(super) fn follow(&mut self, repository: &Repository, changes: &[Change]) {
        for change in changes {
            let known = [change.old.map(|blob| blob.id), change.new.map(|blob| blob.id)];
            match self.put(repository, &change.path, &known, change.new) {
                Ok(true) => drop(self.left.remove(&change.path)),
                Ok(false) | Err(_) => drop(self.left.insert(change.path.clone())),
            }
            self.unindexed.insert(change.path.clone(), change.new);
        }
        self.write_index();
    }

    /// Writes one file, unless it holds what none of ours did. Says whether it is as it should be.
    fn put(
        &mut self,
        repository: &Repository,
        path: &str,
        known: &[Option<Oid>],
        new: Option<Blob>,
    ) -> io::Result<bool> {
        if new.is_some_and(|blob| !is_plain(blob)) {
            // A symbolic link: git makes it, if someone asks it to.
            return Ok(false);
        }
        let mut is_new = false;
        match self.look(path)? {
            Found::File(id, _) if new.is_some_and(|blob| blob.id == id) => return Ok(true),
            Found::File(id, _) | Found::Link(id) if known.contains(&Some(id)) => {}
            Found::Nothing if new.is_none() => return Ok(true),
            Found::Nothing => is_new = true,
            // A power failure leaves empty files.
            Found::File(_, metadata) if metadata.len() == 0 && self.unsynced.contains(path) => {}
            Found::File(..) | Found::Link(_) | Found::Other => return Ok(false),
        }
        let target = self.root.join(path);
        match new {
            None => {
                fs::remove_file(&target)?;
                self.remove_empty_parents(path);
            }
            Some(blob) => {
                let content = repository.find_blob(blob.id).map_err(io::Error::other)?;
                self.make_parents(path)?;
                let mode = if blob.mode == FileMode::BlobExecutable { 0o700 } else { 0o600 };
                let write = |place: &Path| {
                    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(place)?;
                    file.write_all(content.content())
                };
                if is_new {
                    // In its place: half of one is known for what it is at the next start.
                    write(&target)?;
                } else {
                    self.replace(&target, write)?;
                }
            }
        }
        self.unsynced.insert(path.to_owned());
        Ok(true)
    }

    /// Writes a file aside, and moves it to its place. `.git` can be a mount of its own, out of which nothing can be moved.
    fn replace(&self, target: &Path, write: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let move_from = |aside: &Path| {
            remove(aside)?;
            write(aside)?;
            fs::rename(aside, target).inspect_err(|_| drop(remove(aside)))
        };
        match move_from(&self.aside) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => move_from(&self.root.join(ASIDE)),
            moved => moved,
        }
    }

    /// What is at the place of a file. No symbolic link on the way is followed.
    fn look(&self, path: &str) -> io::Result<Found> {
        if !self.is_direct(path)? {
            return Ok(Found::Other);
        }
        let target = self.root.join(path);
        let found = match fs::symlink_metadata(&target) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Found::Nothing);
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

    /// Whether all directories above a file are directories, as far as they exist.
    fn is_direct(&self, path: &str) -> io::Result<bool> {
        for above in Path::new(path).ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match fs::symlink_metadata(self.root.join(above)) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn make_parents(&self, path: &str) -> io::Result<()> {
        let above = self.root.join(path);
        above.parent().map_or(Ok(()), |above| DirBuilder::new().recursive(true).mode(0o700).create(above))
    }

    fn remove_empty_parents(&self, path: &str) {
        let above = Path::new(path).ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        for directory in above {
            if fs::remove_dir(self.root.join(directory)).is_err() {
                break;
            }
        }
    }

    /// Tells the index of the files that have changed, unless another program holds it: then the next time.
    fn write_index(&mut self) {
        if self.unindexed.is_empty() {
            return;
        }
        let mut write = || {
            self.index.read(false)?;
            for (path, blob) in &self.unindexed {
                match blob {
                    Some(blob) => {
                        // Without times git looks at what is in the file.
                        let found = Some(path).filter(|path| !self.left.contains(*path));
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
            // What was not written is forgotten: it is done again from the list.
            Err(_) => drop(self.index.read(true)),
        }
    }

    /// Compares the files with the newest commit when the store is opened. `steps` are the changes of each commit since the
    /// checkpoint, oldest first: a process that died may have left any of their versions.
    pub(super) fn settle(
        &mut self,
        repository: &Repository,
        head: &[Change],
        steps: &[Vec<Change>],
    ) -> Result<()> {
        let mut versions: BTreeMap<&str, HashSet<Option<Oid>>> = BTreeMap::new();
        for change in steps.iter().flatten() {
            let known = versions.entry(&change.path).or_default();
            known.extend([change.old.map(|blob| blob.id), change.new.map(|blob| blob.id)]);
        }
        let mut newest: BTreeMap<&str, Option<Blob>> = versions.keys().map(|path| (*path, None)).collect();
        newest.extend(head.iter().map(|change| (change.path.as_str(), change.new)));
        let unread = |error| io_failed("the work tree can't be read", error);
        let (mut late, mut changed) = (Vec::new(), 0);
        for (path, blob) in newest {
            let is_ours = record_of(path).is_some();
            let known = versions.get(path);
            // A symbolic link is no record, and git's affair.
            if !is_ours && known.is_none() || blob.is_some_and(|blob| !is_plain(blob)) {
                continue;
            }
            let id = blob.map(|blob| blob.id);
            let found = self.look(path).map_err(unread)?;
            let is_left = |id: Option<Oid>| known.is_some_and(|known| known.contains(&id));
            if is_left(None)
                && let (Found::File(..), Some(blob)) = (&found, blob)
                && self.is_begun(repository, path, blob).map_err(unread)?
            {
                fs::remove_file(self.root.join(path)).map_err(unread)?;
                late.push((path, Some(blob)));
                continue;
            }
            match found {
                Found::File(found, metadata) if Some(found) == id => {
                    self.remember(path, blob, &metadata);
                }
                Found::Nothing if id.is_none() => {
                    self.unindexed.insert(path.to_owned(), None);
                }
                Found::File(found, metadata)
                    if is_left(Some(found)) || known.is_some() && metadata.len() == 0 =>
                {
                    late.push((path, blob));
                }
                Found::Link(found) if is_left(Some(found)) => late.push((path, blob)),
                Found::Nothing if is_left(None) => late.push((path, blob)),
                _ if is_ours && id.is_some() => changed += 1,
                _ => {}
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
        for (path, blob) in late {
            self.unsynced.insert(path.to_owned());
            let known: Vec<Option<Oid>> = versions.get(path).into_iter().flatten().copied().collect();
            self.put(repository, path, &known, blob)
                .map_err(|error| io_failed("the work tree can't be written", error))?;
            self.unindexed.insert(path.to_owned(), blob);
        }
        self.write_index();
        Ok(())
    }

    /// Whether a file holds the beginning of what it should, and no more: who wrote it was killed.
    fn is_begun(&self, repository: &Repository, path: &str, blob: Blob) -> io::Result<bool> {
        let found = fs::read(self.root.join(path))?;
        let wanted = repository.find_blob(blob.id).map_err(io::Error::other)?;
        Ok(found.len() < wanted.content().len() && wanted.content().starts_with(&found))
    }

    /// Has the index know a file whose content is right.
    fn remember(&mut self, path: &str, blob: Option<Blob>, metadata: &Metadata) {
        let is_known = self.index.get_path(Path::new(path), 0).is_some_and(|entry| {
            Some(entry.id) == blob.map(|blob| blob.id) && is_unchanged(&entry, metadata)
        });
        if !is_known {
            self.unindexed.insert(path.to_owned(), blob);
        }
        // Others could read it while it was somebody else's.
        if metadata.permissions().mode() & 0o077 != 0 {
            let mode = metadata.permissions().mode() & 0o700;
            let private = fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(mode));
            if private.is_ok() {
                self.unindexed.insert(path.to_owned(), blob);
            }
        }
    }

    /// Puts some files on disk while nobody waits, and the checkpoint once all are. Says whether there is more to do.
    pub(super) fn tidy(&mut self, head: Option<Oid>, all: bool) -> bool {
        if !self.unindexed.is_empty() {
            self.write_index();
        }
        let count = if all { usize::MAX } else { SYNCED_AT_ONCE };
        let some: Vec<String> = self.unsynced.iter().take(count).cloned().collect();
        for path in some {
            let target = self.root.join(&path);
            // A file that is gone is not on disk if its directory is not.
            let synced = match File::open(&target) {
                Ok(file) => file.sync_data(),
                Err(_) => Ok(()),
            };
            if synced.is_err() {
                return false;
            }
            self.unsynced.remove(&path);
            let below = Path::new(&path).ancestors().skip(1).filter(|above| above.components().count() > 1);
            self.unsynced_below.extend(below.map(|above| self.root.join(above)));
        }
        if !self.unsynced.is_empty() {
            return true;
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
        false
    }

    /// Forgets what was to be done: another branch is checked out, and git brings the files of ours when it is again.
    pub(super) fn leave(&mut self) {
        self.unsynced.clear();
        self.unsynced_below.clear();
        self.left.clear();
        self.unindexed.clear();
    }

    /// How many files may not be on disk.
    pub(super) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Says on disk that the files are as this commit has them.
    pub(super) fn mark(&self, head: Option<Oid>) {
        let head = head.unwrap_or(Oid::ZERO_SHA1);
        if self.checkpoint() != Some(head) {
            // An older one is as true.
            drop(write_file(&self.checkpoint, format!("{head}\n").as_bytes()));
        }
    }
}

const fn is_plain(blob: Blob) -> bool {
    matches!(blob.mode, FileMode::Blob | FileMode::BlobExecutable | FileMode::BlobGroupWritable)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// As git has it: a file whose times, size and place are those of the index was not changed.
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

// The index keeps the lower 32 bits of each.
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
