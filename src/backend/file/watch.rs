//! Watches: the committer tells what this process changes, and a look every 20 ms what others change.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use foldhash::quality::RandomState;
use futures_core::Stream;
use tokio::time::{Instant, sleep};

use super::{
    File, LABEL,
    draft::{CONFIGS, CREDENTIALS, Documents},
    reader::Reader,
    snapshot::Snapshot,
    work::work,
};
use crate::{
    Error, Result,
    backend::feed::{Change, Feed, IDLE_EVERY, Source, Teller},
    capability::Watch,
    codec::RecordKey,
    event::{Cursor, Event, WatchOptions},
    history::DocumentKind,
};

/// How often it is looked whether another process has committed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A comparison of all documents says what another process has changed. The next one waits this many times
/// as long as it took, but not longer than [`IDLE_EVERY`].
const PAUSE_FACTOR: u32 = 9;

/// A store with more documents, or documents of more bytes, is not compared.
const MOST_DOCUMENTS: usize = 100_000;
const MOST_BYTES: u64 = 64 << 20;

/// How often it is told of such a store that any document may have changed.
const COARSE_EVERY: Duration = Duration::from_secs(1);

/// Tells the watchers of a store what changes.
#[derive(Clone)]
pub(super) struct Watchers {
    pub(super) feed: Feed,
    /// Of the watch that compares, if one does.
    own: Arc<Mutex<Weak<Own>>>,
}

impl Watchers {
    pub(super) fn new() -> Self {
        Self { feed: Feed::new(LABEL), own: Arc::default() }
    }

    /// Tells what a commit of this process has changed. Called once every reader finds it.
    pub(super) fn tell(&self, changed: Documents) {
        self.feed.tell(|| {
            let changes: Vec<Change> = changed.into_iter().map(|(kind, key)| (kind, Some(key))).collect();
            if let Some(own) = self.own().upgrade() {
                own.add(&changes);
            }
            changes
        });
    }

    fn own(&self) -> MutexGuard<'_, Weak<Own>> {
        // Each change is complete, so a poisoned lock is safe to use.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process has changed since the last comparison: another process may have changed it back, which
/// no comparison shows. None: too much.
struct Own(Mutex<Option<HashSet<Change>>>);

impl Own {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(HashSet::new()))))
    }

    fn add(&self, changes: &[Change]) {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changed) = own.as_mut() {
            changed.extend(changes.iter().cloned());
        }
        own.take_if(|changed| changed.len() > MOST_DOCUMENTS);
    }

    fn take(&self) -> Option<HashSet<Change>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(HashSet::new())
    }
}

impl Watch for File {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let (watchers, reader) = (self.store.watchers.clone(), Arc::downgrade(&self.store.reader));
        self.store.watchers.feed.watch(Changes { watchers, reader }, options)
    }
}

/// The changes of a store, which it does not keep open.
#[derive(Clone)]
struct Changes {
    watchers: Watchers,
    reader: Weak<Reader>,
}

impl Source for Changes {
    async fn follow(&self, teller: &Teller) -> Error {
        let followed = match self.is_shared() {
            Ok(true) => self.look_again(teller).await,
            // The committer tells everything.
            Ok(false) => self.only_idle(teller).await,
            Err(closed) => return closed,
        };
        match followed {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        Ok(self.watchers.feed.since(cursor))
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
        let own = Own::new();
        *self.watchers.own() = Arc::downgrade(&own);
        let (mut seen, _) = self.look(&own, Seen::default()).await?;
        // What others wrote while nothing looked is not known.
        teller.started(None);
        let (mut pause, mut idle) = (LOOK_EVERY, Instant::now());
        loop {
            sleep(pause).await;
            pause = LOOK_EVERY;
            if !self.reader()?.is_at(seen.moment)? {
                let changes;
                (seen, changes) = self.look(&own, seen).await?;
                if let Some(changes) = changes {
                    teller.tell(changes, None);
                    pause = seen.pause;
                }
            }
            if idle.elapsed() >= IDLE_EVERY {
                teller.idle(None);
                idle = Instant::now();
            }
        }
    }

    /// Looks what others have changed. None: they have not committed. It has no deadline: there is one look
    /// at a time, also at a disk that does not answer.
    async fn look(&self, own: &Arc<Own>, before: Seen) -> Result<(Seen, Option<HashSet<Change>>)> {
        let (reader, own) = (self.reader.clone(), own.clone());
        work(Duration::MAX, false, move || look(&reader, &own, before)).await
    }
}

/// What is known of the store: at first nothing.
#[derive(Default)]
struct Seen {
    /// See [`Reader::moment`]. No shared store has the moment 0.
    moment: u64,
    /// None: it is too large.
    digests: Option<Digests>,
    /// How long to wait before the next look.
    pause: Duration,
}

/// A hash of each document, by the name under which it is stored.
type Digests = HashMap<Box<[u8]>, u64, RandomState>;

fn look(reader: &Weak<Reader>, own: &Own, before: Seen) -> Result<(Seen, Option<HashSet<Change>>)> {
    let begun = Instant::now();
    let now = || reader.upgrade().ok_or_else(Error::closed)?.moment();
    if now()?.0 == before.moment {
        return Ok((before, None));
    }
    // Before the snapshot, which then has all of them. Later ones are for the next look.
    let own = own.take();
    let (moment, snapshot) = now()?;
    let known = before.digests.zip(own);
    let is_known = known.is_some();
    let (digests, mut changes) = compared(&snapshot, known.unwrap_or_default(), reader)?;
    if !is_known || digests.is_none() {
        changes = [(DocumentKind::Credential, None), (DocumentKind::Config, None)].into();
    }
    let pause = match digests {
        Some(_) => (begun.elapsed() * PAUSE_FACTOR).clamp(LOOK_EVERY, IDLE_EVERY),
        None => COARSE_EVERY,
    };
    Ok((Seen { moment, digests, pause }, Some(changes)))
}

/// The digests of all documents, and what differs from those before, beside what this process has changed.
/// None: they are too many or too large.
fn compared(
    snapshot: &Snapshot,
    (mut before, mut changes): (Digests, HashSet<Change>),
    reader: &Weak<Reader>,
) -> Result<(Option<Digests>, HashSet<Change>)> {
    let mut now = Digests::with_capacity_and_hasher(before.len(), before.hasher().clone());
    let mut bytes = 0;
    let number = |name| snapshot.number(name).map(|number| number.unwrap_or(0));
    if number(CREDENTIALS)? + number(CONFIGS)? > MOST_DOCUMENTS as u64 {
        return Ok((None, changes));
    }
    for names in [RecordKey::credentials(), RecordKey::configs()] {
        for stored in snapshot.records(names)? {
            let stored = stored?;
            bytes += stored.bytes();
            if now.len() == MOST_DOCUMENTS || bytes > MOST_BYTES {
                return Ok((None, changes));
            }
            // The snapshot keeps a store open that was only read.
            if reader.strong_count() == 0 {
                return Err(Error::closed());
            }
            let digest = now.hasher().hash_one(stored.value());
            let (name, old) = match before.remove_entry(stored.raw_name()) {
                Some((name, old)) => (name, Some(old)),
                None => (stored.raw_name().into(), None),
            };
            if old != Some(digest) {
                changes.insert(change_of(&name));
            }
            now.insert(name, digest);
        }
    }
    // The others were deleted.
    changes.extend(before.keys().map(|name| change_of(name)));
    Ok((Some(now), changes))
}

/// The change of the document with this name. If that can't be read, any of its kind.
fn change_of(name: &[u8]) -> Change {
    match RecordKey::decode(name) {
        Ok(RecordKey::Credential(id)) => (DocumentKind::Credential, Some(id)),
        Ok(RecordKey::Config(key)) => (DocumentKind::Config, Some(key)),
        _ if RecordKey::configs().contains(&name.to_vec()) => (DocumentKind::Config, None),
        _ => (DocumentKind::Credential, None),
    }
}
