//! Rebases local commits onto the remote's, and finds records that both sides changed.

use std::collections::{BTreeMap, HashSet};

use git2::Oid;

use super::{
    branch::{Blob, Branch, Change},
    name::{encode, record_of},
};
use crate::{Error, ErrorKind, Result};

/// What a change is about: a record's file, if it had its encoded name, or another file.
fn subject_of(change: &Change) -> String {
    match record_of(&change.path) {
        Some((kind, key)) => format!("{}/{}", kind.directory(), encode(&key)),
        None => change.path.clone(),
    }
}

/// The changes by record, or by other file.
fn by_subject(changes: &[Change]) -> BTreeMap<String, Vec<(&str, Option<Blob>)>> {
    let mut subjects: BTreeMap<String, Vec<(&str, Option<Blob>)>> = BTreeMap::new();
    for change in changes {
        subjects.entry(subject_of(change)).or_default().push((&change.path, change.new));
    }
    subjects
}

/// Repeats our commits on top of the remote's and returns the last one.
pub(super) fn rebase(branch: &Branch, head: Option<Oid>, base: Option<Oid>, theirs: Oid) -> Result<Oid> {
    let (own, changed) = (branch.since(base, head)?, branch.changes(base, Some(theirs))?);
    let changed = by_subject(&changed);
    let both: HashSet<String> = by_subject(&branch.changes(base, head)?)
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
        let mut changes = branch.changes_of(&commit)?;
        changes.retain(|change| !both.contains(&subject_of(change)));
        if let Some(subject) = changes.iter().map(subject_of).find(|subject| changed.contains_key(subject)) {
            let here = newest_change(branch, base, head.unwrap_or(id), &subject)?;
            return Err(conflict(here, newest_change(branch, base, theirs, &subject)?, &subject));
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
    for subject in own.iter().map(subject_of) {
        if changed.get(&subject).is_some_and(|files| Some(files) != wanted.get(&subject)) {
            return Ok(Some(conflict(commit, newest_change(branch, base, theirs, &subject)?, &subject)));
        }
    }
    Ok(None)
}

/// The newest commit that changed this subject.
fn newest_change(branch: &Branch, base: Option<Oid>, tip: Oid, subject: &str) -> Result<Oid> {
    for id in branch.since(base, Some(tip))?.into_iter().rev() {
        let changes = branch.changes_of(&branch.commit(id)?)?;
        if changes.iter().any(|change| subject_of(change) == *subject) {
            return Ok(id);
        }
    }
    Ok(tip)
}

#[cold]
fn conflict(own: Oid, theirs: Oid, subject: &str) -> Error {
    let error = Error::new(
        ErrorKind::Conflict,
        format!("commit {own} of this clone and commit {theirs} of the remote change the same record"),
    );
    match record_of(subject) {
        Some((_, key)) => error.with_key(&key),
        None => error,
    }
}
