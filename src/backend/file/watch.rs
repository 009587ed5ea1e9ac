//! Watches: the committer tells what this process changes, and a look every 20 ms what others have logged.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{
    File,
    committer::{Committer, Line},
    draft::{COMMITS, WATCHED, millis},
    reader::{Moment, Reader},
    work::work,
};
use crate::{
    Error, Result,
    backend::feed::{Change, Feed, IDLE_EVERY, Source, Teller},
    capability::Watch,
    event::{Cursor, Event, WatchOptions},
    history::DocumentKind,
};

/// How often it is looked whether another process has committed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long to wait after it was told that any document may have changed.
const PAUSE: Duration = Duration::from_millis(250);

/// Processes that share the store log what they change for this time. It is a commit, so it is done seldom:
/// when less than half of it is left.
const LOGGED: Duration = Duration::from_secs(600);

/// How long the first event waits for that commit, which waits for those of others.
const LOG_WAIT: Duration = Duration::from_secs(1);

impl Watch for File {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let store = &self.store;
        let (reader, line) = (Arc::downgrade(&store.reader), store.committer.as_ref().map(Committer::line));
        store.feed.watch(Changes { feed: store.feed.clone(), reader, line }, options)
    }
}

/// The changes of a store, which this does not keep open.
#[derive(Clone)]
struct Changes {
    feed: Feed,
    reader: Weak<Reader>,
    /// None: the store is open for reading only.
    line: Option<Line>,
}

impl Source for Changes {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        // Otherwise the committer tells everything.
        if self.is_shared()? { self.look_again(teller).await } else { self.only_idle(teller).await }
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        Ok(self.feed.since(cursor))
    }
}

impl Changes {
    fn reader(&self) -> Result<Arc<Reader>> {
        self.reader.upgrade().ok_or_else(Error::closed)
    }

    fn is_shared(&self) -> Result<bool> {
        Ok(self.reader()?.current()?.engine.is_shared())
    }

    async fn only_idle(&self, teller: &Teller) -> Result<Infallible> {
        teller.resumed();
        loop {
            sleep(IDLE_EVERY).await;
            self.reader()?.current()?;
            teller.idle(None);
        }
    }

    async fn look_again(&self, teller: &Teller) -> Result<Infallible> {
        drop(timeout(LOG_WAIT, self.keep_log()).await);
        let mut logs = Instant::now();
        let (mut seen, _) = self.look(Seen::default()).await?;
        // What others wrote while nothing looked is not known.
        teller.started(None);
        let (mut pause, mut idle) = (LOOK_EVERY, Instant::now());
        loop {
            sleep(pause).await;
            pause = LOOK_EVERY;
            let now = self.reader()?.moment()?;
            if now.is_none() || now != seen.moment {
                let changes;
                (seen, changes) = self.look(seen).await?;
                match changes {
                    Some(changes) => teller.tell(changes, None),
                    None => {
                        let any = [(DocumentKind::Credential, None), (DocumentKind::Config, None)];
                        teller.tell(any, None);
                        pause = PAUSE;
                    }
                }
            }
            if idle.elapsed() >= IDLE_EVERY {
                teller.idle(None);
                idle = Instant::now();
            }
            if logs.elapsed() >= LOGGED / 4 {
                drop(self.keep_log());
                logs = Instant::now();
            }
        }
    }

    /// Has all processes log what they change. If this fails, it is told that any document may have changed.
    fn keep_log(&self) -> JoinHandle<Result<()>> {
        let (reader, line) = (self.reader.clone(), self.line.clone());
        spawn_blocking(move || {
            let Some(line) = line else { return Ok(()) };
            let snapshot = reader.upgrade().ok_or_else(Error::closed)?.snapshot()?;
            let (until, logged) = (snapshot.number(WATCHED)?.unwrap_or(0), LOGGED.as_millis() as u64);
            drop(snapshot);
            match until < millis() + logged / 2 {
                true => line.write(move |draft| draft.watch_until(millis() + logged)),
                false => Ok(()),
            }
        })
    }

    /// What others have changed. None: any document, or nothing. It has no deadline: there is one look at a
    /// time, also at a disk that does not answer.
    async fn look(&self, before: Seen) -> Result<(Seen, Option<BTreeSet<Change>>)> {
        let reader = self.reader.clone();
        let look = move || look(&*reader.upgrade().ok_or_else(Error::closed)?, &before);
        work(Duration::MAX, false, look).await
    }
}

/// What is known of the store: at first nothing.
#[derive(Default)]
struct Seen {
    moment: Option<Moment>,
    /// The number of commits, if all processes count them.
    commits: Option<u64>,
}

fn look(reader: &Reader, before: &Seen) -> Result<(Seen, Option<BTreeSet<Change>>)> {
    // Before the snapshot, so that what is committed meanwhile is looked at again. While this process commits
    // there is none.
    let (current, moment) = (reader.newest()?, reader.moment()?);
    let snapshot = reader.snapshot()?;
    let number = snapshot.number(COMMITS)?.unwrap_or(0);
    let commits = current.engine.counts_commits().then_some(number);
    let changes = match before.commits.zip(commits) {
        Some((then, now)) => snapshot.logged(then, now, reader.writer())?,
        None => None,
    };
    Ok((Seen { moment, commits }, changes))
}
