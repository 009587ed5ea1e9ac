//! Watches: the writer tells what each state changes that readers see.
//!
//! What differs between two states does not say what was changed, and changed back, between them: a reader
//! may have seen that. So each state counts, and from a cursor on each commit.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_core::Stream;
use git2::{Oid, Repository};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{
    Git, LABEL,
    branch::{compare, walk},
    error::{found, unread},
    repository::open_repository,
    state::State,
    watchers::{Move, Watchers, records_of},
    worker::Line,
    writer::SyncStatus,
};
use crate::{
    Error, ErrorKind, Result,
    backend::feed::{Change, IDLE_EVERY, Source, Teller},
    capability::Watch,
    event::{Cursor, Event, WatchOptions},
};

/// How often it is looked whether a person has moved the branch.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The place of a branch without a commit.
const NO_COMMIT: &str = "none";

/// The most commits that are looked through from a cursor on.
const MOST_COMMITS: usize = 1000;

impl Watch for Git {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let store = &self.store;
        let moves = Moves {
            watchers: store.watchers.clone(),
            state: store.state.clone(),
            status: store.sync_status.clone(),
            line: store.worker.line(),
            path: store.path.clone(),
            reference: store.options.reference(),
        };
        store.watchers.feed.watch(moves, options)
    }
}

/// The moves of the branch of a store, which this does not keep open.
#[derive(Clone)]
struct Moves {
    watchers: Watchers,
    state: Arc<ArcSwap<State>>,
    status: Arc<Mutex<SyncStatus>>,
    line: Line,
    path: PathBuf,
    reference: String,
}

impl Source for Moves {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        self.tell_moves(teller).await
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        match place_of(cursor) {
            Some(place) => {
                let changes = self.changes(place, self.head()?).await?;
                Ok(changes.map(|changes| changes.into_iter().collect()))
            }
            None => Ok(None),
        }
    }
}

impl Moves {
    /// The commit that readers see.
    fn head(&self) -> Result<Option<Oid>> {
        let state = self.state.load();
        if state.is_closed() { Err(Error::closed()) } else { Ok(state.head) }
    }

    async fn tell_moves(&self, teller: &Teller) -> Result<Infallible> {
        let mut moves = self.watchers.moves();
        // The thread may sleep until the next hour, and now has to fetch.
        self.line.send(|_| {})?;
        let mut told = self.head()?;
        let since = match teller.last().as_ref().and_then(place_of) {
            Some(last) => self.changes(last, told).await?,
            None => None,
        };
        match since {
            Some(changes) => {
                teller.resumed();
                teller.tell(changes, Some(cursor_at(told)));
            }
            None => teller.started(Some(cursor_at(told))),
        }
        let (mut look, mut idle) = (Instant::now() + LOOK_EVERY, Instant::now());
        loop {
            match timeout_at(look, moves.recv()).await {
                Ok(Some(Move { head, changes })) => {
                    teller.tell(changes, Some(cursor_at(head)));
                    told = head;
                    continue;
                }
                Ok(None) => return Err(Error::closed()),
                Err(_) => look = Instant::now() + LOOK_EVERY,
            }
            let is_seen = self.is_seen().await?;
            if is_seen && idle.elapsed() >= IDLE_EVERY && self.head()? == told && !self.is_cut_off() {
                teller.idle(Some(cursor_at(told)));
                idle = Instant::now();
            }
        }
    }

    /// Whether readers see the branch's commit. If not, has them see it.
    async fn is_seen(&self) -> Result<bool> {
        let reference = self.reference.clone();
        let branch = self.read(move |repository| found(repository.refname_to_id(&reference)).map_err(unread));
        let is_seen = branch.await? == self.head()?;
        if !is_seen {
            // An error, such as of a record that can't be read, is that of calls, too.
            self.line.send(|writer| drop(writer.local.refresh()))?;
        }
        Ok(is_seen)
    }

    /// Whether the remote has commits that can't be fetched, or may have.
    fn is_cut_off(&self) -> bool {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).is_cut_off
    }

    /// The records that one of the commits from `old` to `new` changes. None: `old` is not an ancestor, or
    /// not known here, or too old.
    async fn changes(&self, old: Option<Oid>, new: Option<Oid>) -> Result<Option<BTreeSet<Change>>> {
        self.read(move |repository| Ok(changes(repository, old, new).unwrap_or(None))).await
    }

    /// Reads the repository on a thread for blocking work.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Repository) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.path.clone();
        let read = spawn_blocking(move || work(&open_repository(&path)?)).await;
        read.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "reading the repository panicked")))
    }
}

fn changes(
    repository: &Repository,
    old: Option<Oid>,
    new: Option<Oid>,
) -> Result<Option<BTreeSet<Change>>, git2::Error> {
    // A merge may have left out what the other side had changed.
    let mut changes: BTreeSet<_> = records_of(&compare(repository, old, new)?).collect();
    let Some(tip) = new else { return Ok(old.is_none().then_some(changes)) };
    if let Some(old) = old
        && old != tip
        && !repository.graph_descendant_of(tip, old)?
    {
        return Ok(None);
    }
    for (count, id) in walk(repository, old, tip)?.enumerate() {
        if count == MOST_COMMITS {
            return Ok(None);
        }
        let commit = repository.find_commit(id?)?;
        changes.extend(records_of(&compare(repository, commit.parent_ids().next(), Some(commit.id()))?));
    }
    Ok(Some(changes))
}

fn cursor_at(commit: Option<Oid>) -> Cursor {
    match commit {
        Some(commit) => Cursor::at(LABEL, commit),
        None => Cursor::at(LABEL, NO_COMMIT),
    }
}

/// The commit of a cursor, if it is one of a Git store.
fn place_of(cursor: &Cursor) -> Option<Option<Oid>> {
    match cursor.place(LABEL)? {
        NO_COMMIT => Some(None),
        // A shorter text would be completed.
        commit if commit.len() == Oid::ZERO_SHA1.to_string().len() => Oid::from_str(commit).ok().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_commit() {
        let commit = Oid::from_str("0123456789abcdef0123456789abcdef01234567").unwrap();
        for place in [None, Some(commit)] {
            assert_eq!(place_of(&cursor_at(place)), Some(place));
        }
        for other in
            ["git:", "git:0", "git:1.2.3", "git", "git:0123456789abcdef0123456789abcdef0123456g", "file:none"]
        {
            assert_eq!(place_of(&Cursor::new(other).unwrap()), None, "{other}");
        }
    }
}
