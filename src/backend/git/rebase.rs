//! Rebases local commits onto the remote's, and finds records that both sides changed.

use std::collections::{BTreeMap, HashSet};

use git2::Oid;

use super::{
    branch::{Blob, Branch, Change},
    name::record_of,
};
use crate::{Error, ErrorKind, Key, Result, history::DocumentKind};

/// What a change is about: a record, whatever the name of its file, or another file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Record(DocumentKind, Key),
    File(String),
}

impl Subject {
    fn of(path: &str) -> Self {
        record_of(path).map_or_else(|| Self::File(path.to_owned()), |(kind, key)| Self::Record(kind, key))
    }
}

/// The changes by record, or by other file.
fn by_subject(changes: &[Change]) -> BTreeMap<Subject, Vec<(&str, Option<Blob>)>> {
    let mut subjects: BTreeMap<Subject, Vec<(&str, Option<Blob>)>> = BTreeMap::new();
    for change in changes {
        subjects.entry(Subject::of(&change.path)).or_default().push((&change.path, change.new));
    }
    subjects
}

/// Repeats our commits on top of the remote's and returns the last one.
pub(super) fn rebase(branch: &Branch, head: Option<Oid>, base: Option<Oid>, theirs: Oid) -> Result<Oid> {
    let (own, changed) = (branch.since(base, head)?, branch.changes(base, Some(theirs))?);
    let changed = by_subject(&changed);
    let both: HashSet<Subject> = by_subject(&branch.changes(base, head)?)
        .into_iter()
        .filter(|(subject, files)| changed.get(subject) == Some(files))
        .map(|(subject, _)| subject)
        .collect();
    let mut tip = theirs;
    for id in own {
        let commit = branch.commit(id)?;
        if commit.parent_count() > 1 {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("commit {id} is a merge that the remote does not have: merge or rebase with git"),
            )
            .with_retryable(false));
        }
        let mut changes = branch.changes(commit.parent_ids().next(), Some(id))?;
        changes.retain(|change| !both.contains(&Subject::of(&change.path)));
        if let Some(change) = changes.iter().find(|change| changed.contains_key(&Subject::of(&change.path))) {
            let subject = Subject::of(&change.path);
            let theirs = newest_change(branch, base, theirs, &subject)?;
            let own = newest_change(branch, base, head.unwrap_or(id), &subject)?;
            return Err(conflict(own, theirs, change));
        }
        if let Some(made) = branch.replay(tip, &commit, &changes)? {
            tip = made;
        }
    }
    Ok(tip)
}

/// The conflict of a write that is not on the branch yet, if it changes a record that the remote changed too.
pub(super) fn conflict_of(
    branch: &Branch,
    head: Option<Oid>,
    commit: Oid,
    base: Option<Oid>,
    theirs: Option<Oid>,
) -> Result<Option<Error>> {
    let Some(theirs) = theirs else { return Ok(None) };
    let (own, changed) = (branch.changes(head, Some(commit))?, branch.changes(base, Some(theirs))?);
    let (wanted, changed) = (by_subject(&own), by_subject(&changed));
    for change in &own {
        let subject = Subject::of(&change.path);
        if changed.get(&subject).is_some_and(|files| Some(files) != wanted.get(&subject)) {
            return Ok(Some(conflict(commit, newest_change(branch, base, theirs, &subject)?, change)));
        }
    }
    Ok(None)
}

/// The newest commit that changed this subject.
fn newest_change(branch: &Branch, base: Option<Oid>, tip: Oid, subject: &Subject) -> Result<Oid> {
    for id in branch.since(base, Some(tip))?.into_iter().rev() {
        let parent = branch.commit(id)?.parent_ids().next();
        let changes = branch.changes(parent, Some(id))?;
        if changes.iter().any(|change| Subject::of(&change.path) == *subject) {
            return Ok(id);
        }
    }
    Ok(tip)
}

#[cold]
fn conflict(own: Oid, theirs: Oid, change: &Change) -> Error {
    let error = Error::new(
        ErrorKind::Conflict,
        format!("commit {own} of this clone and commit {theirs} of the remote change the same record"),
    );
    match record_of(&change.path) {
        Some((_, key)) => error.with_key(&key),
        None => error,
    }
}
