//! `History` for `Git`: reads earlier values from the commits, on a thread for blocking work.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use git2::{Oid, Repository, Sort};

use super::{
    Git,
    branch::Branch,
    error::{found, refused, unread},
    name,
    repository::open_repository,
    state::{Files, missing},
};
use crate::{
    Error, ErrorKind, History, Key, Record, Result,
    history::{Commit, CommitId, DocumentKind},
    layer::time_left,
    model::time::LAST_SECOND,
};

#[cold]
fn unknown() -> Error {
    Error::new(ErrorKind::NotFound, "the history has no such commit")
}

pub(super) fn id_of(commit: Oid) -> CommitId {
    let mut bytes = [0; 20];
    bytes.copy_from_slice(commit.as_bytes());
    CommitId::from(bytes)
}

/// Finds a commit in the history of `head`.
fn find(repository: &Repository, head: Option<Oid>, commit: CommitId) -> Result<git2::Commit<'_>> {
    let head = head.ok_or_else(unknown)?;
    let id = Oid::from_bytes(commit.as_bytes()).map_err(|_| unknown())?;
    let commit = found(repository.find_commit(id)).map_err(unread)?.ok_or_else(unknown)?;
    if head == id || repository.graph_descendant_of(head, id).map_err(unread)? {
        Ok(commit)
    } else {
        Err(unknown())
    }
}

fn history(
    repository: &Repository,
    head: Option<Oid>,
    kind: DocumentKind,
    key: &Key,
    limit: usize,
) -> Result<Vec<Commit>> {
    let head = head.ok_or_else(|| missing(kind, key))?;
    let names: Vec<String> = [Some(name::encode(key)), name::plain(key)].into_iter().flatten().collect();
    // The directory of the record's kind is a cheap way to see that nothing in it changed.
    let directory_in = |commit: &git2::Commit<'_>| {
        commit.tree().map(|tree| tree.get_name(kind.directory()).map(|entry| entry.id()))
    };
    let blob_in = |directory: Option<Oid>| {
        let tree = repository.find_tree(directory?).ok()?;
        names.iter().find_map(|name| Some(tree.get_path(name.as_ref()).ok()?.id()))
    };
    let mut changes = Vec::new();
    let mut walk = || {
        let mut walk = repository.revwalk()?;
        walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME)?;
        walk.push(head)?;
        for id in walk {
            let commit = repository.find_commit(id?)?;
            let directory = directory_in(&commit)?;
            let parents =
                commit.parents().map(|parent| directory_in(&parent)).collect::<Result<Vec<_>, _>>()?;
            let is_untouched =
                if parents.is_empty() { directory.is_none() } else { parents.contains(&directory) };
            if is_untouched {
                continue;
            }
            let now = blob_in(directory);
            // A merge changes a record only if it differs from all parents.
            let is_inherited = parents.iter().any(|parent| blob_in(*parent) == now);
            if if parents.is_empty() { now.is_none() } else { is_inherited } {
                continue;
            }
            let mut change = commit_of(&commit);
            change.is_deleted = now.is_none();
            changes.push(change);
            if changes.len() >= limit {
                break;
            }
        }
        Ok(())
    };
    walk().map_err(unread)?;
    if changes.is_empty() { Err(missing(kind, key)) } else { Ok(changes) }
}

/// The records that a commit may have changed, with their blobs before and after it.
type Changed = BTreeMap<(DocumentKind, Key), (Option<Oid>, Option<Oid>)>;

fn changed_by(branch: &Branch, commit: &git2::Commit<'_>) -> Result<Changed> {
    let (before, after) = (branch.files(commit.parent_ids().next())?, branch.files(Some(commit.id()))?);
    let changes = branch.changes_of(commit)?;
    let records = changes.iter().filter_map(|change| name::record_of(&change.path));
    Ok(records
        .map(|(kind, key)| {
            let blobs = (before.find(kind, &key), after.find(kind, &key));
            ((kind, key), blobs)
        })
        .collect())
}

fn commit_of(commit: &git2::Commit<'_>) -> Commit {
    let (author, seconds) = (commit.author(), commit.time().seconds());
    // An author can give a commit any date.
    let since = u64::try_from(seconds).unwrap_or(0).min(LAST_SECOND);
    let time = UNIX_EPOCH + Duration::from_secs(since);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Commit::new(id_of(commit.id()), time, text(author.name_bytes()), text(author.email_bytes()))
}

impl Git {
    /// Reads the repository on a thread for blocking work. `work` gets the commit of the current state.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Repository, Option<Oid>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (path, head) = (self.store.path.clone(), self.state()?.head);
        let read = tokio::task::spawn_blocking(move || work(&open_repository(&path)?, head));
        match tokio::time::timeout(time_left(self.deadline), read).await {
            Ok(done) => done
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "reading the repository panicked"))),
            Err(_) => {
                Err(Error::new(ErrorKind::Timeout, "the deadline passed while the repository was being read"))
            }
        }
    }
}

impl History for Git {
    async fn history(&self, kind: DocumentKind, key: &Key, limit: usize) -> Result<Vec<Commit>> {
        let key = key.clone();
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.read(move |repository, head| history(repository, head, kind, &key, limit)).await
    }

    async fn value_at(&self, commit: CommitId, kind: DocumentKind, key: &Key) -> Result<Record> {
        let key = key.clone();
        self.read(move |repository, head| {
            let commit = find(repository, head, commit)?;
            Ok(Files::of(repository, Some(commit.id()))?.get(kind, &key)?.0)
        })
        .await
    }

    async fn revert(&self, commit: CommitId) -> Result<CommitId> {
        let deadline = time_left(self.deadline);
        self.ask(move |writer| {
            let branch = &writer.local.branch;
            let commit = find(&branch.repository, writer.local.head(), commit)?;
            if commit.parent_count() > 1 {
                return Err(refused("a merge can't be reverted: revert its commits instead"));
            }
            let (id, changed) = (commit.id(), changed_by(branch, &commit)?);
            drop(commit);
            writer.commit(&format!("revert {id}"), deadline, |draft| {
                changed.iter().try_for_each(|((kind, key), blobs)| draft.undo(*kind, key, *blobs))
            })?;
            writer.local.head().map(id_of).ok_or_else(unknown)
        })
        .await
    }
}
