//! The store's branch: its commits, what they changed, and new ones.

use std::path::{Path, PathBuf};

use git2::{
    Commit, DiffFile, DiffOptions, ErrorCode, FileMode, Oid, Repository, Revwalk, Signature, Sort,
    build::TreeUpdateBuilder,
};

use super::{
    GitOptions,
    error::{failed, found, unread},
    repository::{check_filter, is_checked_out, open_repository},
    state::{Changes, Files},
};
use crate::{Error, ErrorKind, Outcome, Result};

/// From this number of files on, a commit is one pack instead of one file per object: each file costs an
/// fsync.
const PACK_FROM: usize = 32;

/// Files that a commit message names.
const MAX_NAMED: usize = 100;

/// A file that differs between two commits.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) path: String,
    pub(super) old: Option<Blob>,
    pub(super) new: Option<Blob>,
}

/// The content of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) id: Oid,
    pub(super) mode: FileMode,
}

/// The store's branch, in a repository handle of one thread.
pub(super) struct Branch {
    pub(super) repository: Repository,
    path: PathBuf,
    pub(super) reference: String,
    pub(super) tracking: String,
    author: (String, String),
}

impl Branch {
    pub(super) fn new(repository: Repository, path: &Path, options: &GitOptions) -> Self {
        let (reference, tracking) = (options.reference(), options.tracking());
        let author = (options.author_name.clone(), options.author_email.clone());
        Self { repository, path: path.to_owned(), reference, tracking, author }
    }

    /// The newest commit, if any.
    pub(super) fn head(&self) -> Result<Option<Oid>> {
        self.target(&self.reference)
    }

    /// Whether `HEAD` is at the branch: a person may check out another branch while the store is open.
    pub(super) fn is_checked_out(&self) -> bool {
        is_checked_out(&self.repository, &self.reference)
    }

    /// The newest commit that the remote is known to have.
    pub(super) fn tracked(&self) -> Result<Option<Oid>> {
        self.target(&self.tracking)
    }

    fn target(&self, name: &str) -> Result<Option<Oid>> {
        found(self.repository.refname_to_id(name)).map_err(|error| failed("a branch can't be read", error))
    }

    /// The files with records in a commit.
    pub(super) fn files(&self, commit: Option<Oid>) -> Result<Files<'_>> {
        Files::of(&self.repository, commit)
    }

    pub(super) fn commit(&self, id: Oid) -> Result<Commit<'_>> {
        self.repository.find_commit(id).map_err(|error| failed("a commit can't be read", error))
    }

    /// The files that differ between two commits.
    pub(super) fn changes(&self, old: Option<Oid>, new: Option<Oid>) -> Result<Vec<Change>> {
        compare(&self.repository, old, new).map_err(|error| failed("two commits can't be compared", error))
    }

    /// The files that differ between a commit and its first parent.
    pub(super) fn changes_of(&self, commit: &Commit<'_>) -> Result<Vec<Change>> {
        self.changes(commit.parent_ids().next(), Some(commit.id()))
    }

    /// The newest common commit. None for histories without one.
    pub(super) fn base(&self, one: Option<Oid>, other: Option<Oid>) -> Result<Option<Oid>> {
        let (Some(one), Some(other)) = (one, other) else { return Ok(None) };
        found(self.repository.merge_base(one, other)).map_err(unread)
    }

    /// The commits that `tip` has and `base` does not, oldest first.
    pub(super) fn since(&self, base: Option<Oid>, tip: Option<Oid>) -> Result<Vec<Oid>> {
        let Some(tip) = tip else { return Ok(Vec::new()) };
        walk(&self.repository, base, tip).and_then(Iterator::collect).map_err(unread)
    }

    // libgit2 would read the author from the settings for each commit.
    fn signature(&self) -> Result<Signature<'static>> {
        Signature::now(&self.author.0, &self.author.1)
            .map_err(|error| failed("the author of a commit can't be set", error))
    }

    /// Writes a commit of these changes, if there are any. Does not move the branch.
    pub(super) fn write(&self, parent: Option<Oid>, changes: &Changes, what: &str) -> Result<Option<Oid>> {
        for (path, _) in changes.iter().filter(|(_, text)| text.is_some()) {
            check_filter(&self.repository, path)?;
        }
        let author = self.signature()?;
        let make = |repository: &Repository| {
            let blob = |text: &Vec<u8>| repository.blob(text).map(|id| Blob { id, mode: FileMode::Blob });
            let edits = changes.iter().map(|(path, text)| Ok((path, text.as_ref().map(blob).transpose()?)));
            let edits = edits.collect::<Result<Vec<_>, git2::Error>>()?;
            make(repository, parent, &edits, &author, &author, &message(what, changes))
        };
        if changes.len() < PACK_FROM {
            return make(&self.repository).map_err(unwritten);
        }
        // Into memory first, then into one pack.
        let memory = open_repository(&self.path)?;
        let packed = || {
            memory.odb()?.add_new_mempack_backend(1000)?;
            let made = make(&memory)?;
            made.map_or(Ok(()), |made| pack(&memory, &self.repository, parent, made))?;
            Ok(made)
        };
        packed().map_err(unwritten)
    }

    /// Writes a commit again on another parent.
    pub(super) fn replay(&self, parent: Oid, commit: &Commit<'_>, changes: &[Change]) -> Result<Option<Oid>> {
        let edits: Vec<_> = changes.iter().map(|change| (&change.path, change.new)).collect();
        let message = commit.message().unwrap_or("");
        make(&self.repository, Some(parent), &edits, &commit.author(), &self.signature()?, message)
            .map_err(unwritten)
    }

    /// Moves the branch if it is still at `from`.
    pub(super) fn advance(&self, from: Option<Oid>, to: Oid, why: &str) -> Result<()> {
        let from = from.unwrap_or(Oid::ZERO_SHA1);
        match self.repository.reference_matching(&self.reference, to, true, from, why) {
            Ok(_) => Ok(()),
            Err(error) if [ErrorCode::Modified, ErrorCode::Locked].contains(&error.code()) => {
                Err(Error::new(ErrorKind::Busy, "another program is changing the branch"))
            }
            Err(error) => Err(failed("the branch can't be moved", error).with_outcome(Outcome::Unknown)),
        }
    }
}

/// The files that differ between two commits.
pub(super) fn compare(
    repository: &Repository,
    old: Option<Oid>,
    new: Option<Oid>,
) -> Result<Vec<Change>, git2::Error> {
    let tree = |id: Option<Oid>| id.map(|id| repository.find_commit(id)?.tree()).transpose();
    let (old, new) = (tree(old)?, tree(new)?);
    let mut options = DiffOptions::new();
    options.skip_binary_check(true).ignore_submodules(true).disable_pathspec_match(true);
    let diff = repository.diff_tree_to_tree(old.as_ref(), new.as_ref(), Some(&mut options))?;
    let mut changes = Vec::with_capacity(diff.deltas().len());
    for delta in diff.deltas() {
        // A file that one side does not have has the id zero there.
        let blob =
            |file: DiffFile<'_>| (!file.id().is_zero()).then(|| Blob { id: file.id(), mode: file.mode() });
        // Names of records are UTF-8; other files do not matter.
        let path = delta.new_file().path_bytes().and_then(|path| std::str::from_utf8(path).ok());
        if let Some(path) = path {
            let (old, new) = (blob(delta.old_file()), blob(delta.new_file()));
            changes.push(Change { path: path.to_owned(), old, new });
        }
    }
    Ok(changes)
}

fn unwritten(error: git2::Error) -> Error {
    failed("a commit can't be written", error)
}

/// The commits that `tip` has and `base` does not, oldest first.
pub(super) fn walk(repository: &Repository, base: Option<Oid>, tip: Oid) -> Result<Revwalk<'_>, git2::Error> {
    let mut walk = repository.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)?;
    walk.push(tip)?;
    base.map_or(Ok(()), |base| walk.hide(base))?;
    Ok(walk)
}

/// Copies the commits that `tip` has and `base` does not, as one pack.
pub(super) fn pack(
    from: &Repository,
    to: &Repository,
    base: Option<Oid>,
    tip: Oid,
) -> Result<(), git2::Error> {
    let mut pack = from.packbuilder()?;
    pack.set_threads(1);
    pack.insert_walk(&mut walk(from, base, tip)?)?;
    pack.write(&to.commondir().join("objects/pack"), 0o444)?;
    to.odb()?.refresh()
}

/// Writes a commit, unless it would change nothing.
fn make(
    repository: &Repository,
    parent: Option<Oid>,
    edits: &[(&String, Option<Blob>)],
    author: &Signature<'_>,
    committer: &Signature<'_>,
    message: &str,
) -> Result<Option<Oid>, git2::Error> {
    let parent = parent.map(|parent| repository.find_commit(parent)).transpose()?;
    let base = match &parent {
        Some(parent) => parent.tree()?,
        None => repository.find_tree(repository.treebuilder(None)?.write()?)?,
    };
    let mut update = TreeUpdateBuilder::new();
    for (path, blob) in edits {
        match blob {
            Some(blob) => drop(update.upsert(path.as_str(), blob.id, blob.mode)),
            None => drop(update.remove(path.as_str())),
        };
    }
    let tree = update.create_updated(repository, &base)?;
    if tree == base.id() {
        return Ok(None);
    }
    let parents: Vec<&Commit<'_>> = parent.iter().collect();
    let tree = repository.find_tree(tree)?;
    repository.commit(None, author, committer, message, &tree, &parents).map(Some)
}

/// The message of a commit: the names of the files.
fn message(what: &str, changes: &Changes) -> String {
    let line = |(path, text): (&String, &Option<Vec<u8>>)| {
        format!("{} {path}\n", if text.is_some() { "set" } else { "delete" })
    };
    if let (1, Some(only)) = (changes.len(), changes.iter().next()) {
        return if what.is_empty() { line(only) } else { format!("{what}: {}", line(only)) };
    }
    let what = if what.is_empty() { "change" } else { what };
    let mut message = format!("{what}: {} files\n\n", changes.len());
    message.extend(changes.iter().take(MAX_NAMED).map(line));
    if changes.len() > MAX_NAMED {
        message.push_str(&format!("and {} more\n", changes.len() - MAX_NAMED));
    }
    message
}
