//! The store's branch: its commits, what they changed, and new ones.

use std::path::Path;

use git2::{
    Commit, Delta, DiffOptions, ErrorCode, FileMode, ObjectType, Oid, Repository, Signature, Tree,
    TreeWalkMode, build::TreeUpdateBuilder,
};

use super::{
    GitOptions,
    error::failed,
    repository::{LockedRepository, check_filter, is_checked_out},
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

/// The store's branch. Used by one thread.
pub(super) struct Branch {
    pub(super) repository: Repository,
    path: std::path::PathBuf,
    reference: String,
    tracking: String,
    author: (String, String),
}

impl Branch {
    pub(super) fn new(repository: Repository, path: &Path, options: &GitOptions) -> Self {
        Self {
            repository,
            path: path.to_owned(),
            reference: options.reference(),
            tracking: options.tracking(),
            author: (options.author_name.clone(), options.author_email.clone()),
        }
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
        target(&self.repository, name).map_err(|error| failed("a branch can't be read", error))
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
        changes(&self.repository, old, new)
    }

    /// The newest common commit. None for histories without one.
    pub(super) fn base(&self, one: Option<Oid>, other: Option<Oid>) -> Result<Option<Oid>> {
        let (Some(one), Some(other)) = (one, other) else { return Ok(None) };
        base(&self.repository, one, other).map_err(|error| failed("the history can't be read", error))
    }

    /// The commits that `tip` has and `base` does not, oldest first.
    pub(super) fn since(&self, base: Option<Oid>, tip: Option<Oid>) -> Result<Vec<Oid>> {
        let Some(tip) = tip else { return Ok(Vec::new()) };
        let walk = || {
            let mut walk = self.repository.revwalk()?;
            walk.set_sorting(git2::Sort::TOPOLOGICAL | git2::Sort::REVERSE)?;
            walk.push(tip)?;
            base.map_or(Ok(()), |base| walk.hide(base))?;
            walk.collect::<Result<Vec<Oid>, git2::Error>>()
        };
        walk().map_err(|error| failed("the history can't be read", error))
    }

    fn signature(&self) -> Result<Signature<'static>> {
        Signature::now(&self.author.0, &self.author.1)
            .map_err(|error| failed("the author of a commit can't be set", error))
    }

    /// Writes a commit of these changes, if there are any. Does not move the branch.
    pub(super) fn write(&self, parent: Option<Oid>, changes: &Changes, what: &str) -> Result<Option<Oid>> {
        for (path, _) in changes.iter().filter(|(_, text)| text.is_some()) {
            check_filter(&self.repository, path)?;
        }
        let signature = self.signature()?;
        let message = message(what, changes);
        if changes.len() < PACK_FROM {
            let edits = blobs(&self.repository, changes).map_err(unwritten)?;
            return make(&self.repository, parent, &edits, &signature, &signature, &message)
                .map(|made| made.map(|made| made.commit))
                .map_err(unwritten);
        }
        // Into memory first, then into one pack.
        let memory = LockedRepository::reopen(&self.path)?;
        let packed = || {
            let store = memory.odb()?;
            store.add_new_mempack_backend(1000)?;
            let edits = blobs(&memory, changes)?;
            let Some(made) = make(&memory, parent, &edits, &signature, &signature, &message)? else {
                return Ok(None);
            };
            let mut pack = memory.packbuilder()?;
            pack.set_threads(1);
            for (_, blob) in &edits {
                if let Some(blob) = blob {
                    pack.insert_object(blob.id, None)?;
                }
            }
            let tree = memory.find_tree(made.tree)?;
            pack.insert_object(made.tree, None)?;
            let mut trees = Vec::new();
            tree.walk(TreeWalkMode::PreOrder, |_, entry| {
                if entry.kind() == Some(ObjectType::Tree) {
                    trees.push(entry.id());
                }
                0
            })?;
            trees.into_iter().try_for_each(|tree| pack.insert_object(tree, None))?;
            pack.insert_object(made.commit, None)?;
            pack.write(&self.repository.path().join("objects/pack"), 0o444)?;
            self.repository.odb()?.refresh()?;
            Ok(Some(made.commit))
        };
        packed().map_err(unwritten)
    }

    /// Writes a commit again on another parent.
    pub(super) fn replay(&self, parent: Oid, commit: &Commit<'_>, changes: &[Change]) -> Result<Option<Oid>> {
        let edits: Vec<_> = changes.iter().map(|change| (change.path.clone(), change.new)).collect();
        let message = commit.message().unwrap_or("");
        make(&self.repository, Some(parent), &edits, &commit.author(), &self.signature()?, message)
            .map(|made| made.map(|made| made.commit))
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

fn unwritten(error: git2::Error) -> Error {
    failed("a commit can't be written", error)
}

/// The newest commit of a branch, if it exists.
pub(super) fn target(repository: &Repository, name: &str) -> Result<Option<Oid>, git2::Error> {
    match repository.refname_to_id(name) {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The newest common commit of two, if any.
pub(super) fn base(repository: &Repository, one: Oid, other: Oid) -> Result<Option<Oid>, git2::Error> {
    match repository.merge_base(one, other) {
        Ok(base) => Ok(Some(base)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The files that differ between two commits of a repository.
pub(super) fn changes(repository: &Repository, old: Option<Oid>, new: Option<Oid>) -> Result<Vec<Change>> {
    let read = || {
        let tree = |id: Option<Oid>| id.map(|id| repository.find_commit(id)?.tree()).transpose();
        let (old, new) = (tree(old)?, tree(new)?);
        compare(repository, old.as_ref(), new.as_ref())
    };
    read().map_err(|error| failed("two commits can't be compared", error))
}

fn compare(
    repository: &Repository,
    old: Option<&Tree<'_>>,
    new: Option<&Tree<'_>>,
) -> Result<Vec<Change>, git2::Error> {
    let mut options = DiffOptions::new();
    options.skip_binary_check(true).ignore_submodules(true).disable_pathspec_match(true);
    let diff = repository.diff_tree_to_tree(old, new, Some(&mut options))?;
    let mut changes = Vec::with_capacity(diff.deltas().len());
    for delta in diff.deltas() {
        let file = |file: git2::DiffFile<'_>| Blob { id: file.id(), mode: file.mode() };
        let (old, new) = match delta.status() {
            Delta::Added => (None, Some(file(delta.new_file()))),
            Delta::Deleted => (Some(file(delta.old_file())), None),
            _ => (Some(file(delta.old_file())), Some(file(delta.new_file()))),
        };
        // Names of records are UTF-8; other files do not matter.
        let path = delta.new_file().path_bytes().or(delta.old_file().path_bytes());
        if let Some(path) = path.and_then(|path| std::str::from_utf8(path).ok()) {
            changes.push(Change { path: path.to_owned(), old, new });
        }
    }
    Ok(changes)
}

type Edit = (String, Option<Blob>);

fn blobs(repository: &Repository, changes: &Changes) -> Result<Vec<Edit>, git2::Error> {
    let blob = |text: &Vec<u8>| repository.blob(text).map(|id| Blob { id, mode: FileMode::Blob });
    changes.iter().map(|(path, text)| Ok((path.clone(), text.as_ref().map(blob).transpose()?))).collect()
}

struct NewCommit {
    commit: Oid,
    tree: Oid,
}

/// Writes a commit, unless it would change nothing.
fn make(
    repository: &Repository,
    parent: Option<Oid>,
    edits: &[Edit],
    author: &Signature<'_>,
    committer: &Signature<'_>,
    message: &str,
) -> Result<Option<NewCommit>, git2::Error> {
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
    let commit =
        repository.commit(None, author, committer, message, &repository.find_tree(tree)?, &parents)?;
    Ok(Some(NewCommit { commit, tree }))
}

/// The message of a commit: the names of the files.
fn message(what: &str, changes: &Changes) -> String {
    let line = |(path, text): (&String, &Option<Vec<u8>>)| {
        format!("{} {path}", if text.is_some() { "set" } else { "delete" })
    };
    if let (1, Some(only)) = (changes.len(), changes.iter().next()) {
        return if what.is_empty() { line(only) + "\n" } else { format!("{what}: {}\n", line(only)) };
    }
    let what = if what.is_empty() { "change" } else { what };
    let mut message = format!("{what}: {} files\n\n", changes.len());
    for change in changes.iter().take(MAX_NAMED) {
        message.push_str(&line(change));
        message.push('\n');
    }
    if changes.len() > MAX_NAMED {
        message.push_str(&format!("and {} more\n", changes.len() - MAX_NAMED));
    }
    message
}
