//! Watches: the committer tells what this process changes, and a look every 20 ms what others change.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::BuildHasher,
    sync::{Arc, Weak},
    time::Duration,
};

use foldhash::quality::RandomState;
use futures_core::Stream;
use tokio::time::{Instant, sleep};

use super::{File, reader::Reader, snapshot::Snapshot, work::work};
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

impl Watch for File {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let feed = &self.store.feed;
        feed.watch(Changes { feed: feed.clone(), reader: Arc::downgrade(&self.store.reader) }, options)
    }
}

/// The changes of a store, which stays closed if it is closed.
#[derive(Clone)]
struct Changes {
    feed: Feed,
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
        let (mut seen, _) = self.look(None).await?;
        // What others wrote while nothing looked is not known.
        teller.started(None);
        let (mut pause, mut idle) = (LOOK_EVERY, Instant::now());
        loop {
            sleep(pause).await;
            pause = LOOK_EVERY;
            if !self.reader()?.is_at(seen.moment)? {
                let (now, changes) = self.look(Some(seen)).await?;
                seen = now;
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
    async fn look(&self, before: Option<Seen>) -> Result<(Seen, Option<Vec<Change>>)> {
        let reader = self.reader.clone();
        work(Duration::MAX, false, move || look(&reader, before)).await
    }
}

/// What is known of the store.
struct Seen {
    moment: u64,
    /// None: it is too large.
    digests: Option<Digests>,
    /// How long to wait before the next look.
    pause: Duration,
}

/// A hash of each document, by the name under which it is stored.
type Digests = HashMap<Box<[u8]>, u64, RandomState>;

fn look(reader: &Weak<Reader>, before: Option<Seen>) -> Result<(Seen, Option<Vec<Change>>)> {
    let begun = Instant::now();
    let (moment, snapshot) = reader.upgrade().ok_or_else(Error::closed)?.moment()?;
    let (digests, changes) = match before {
        Some(before) if before.moment == moment => return Ok((before, None)),
        Some(Seen { digests: None, .. }) => (None, any()),
        Some(Seen { digests: Some(before), .. }) => match compared(&snapshot, before, reader)? {
            Some((now, changes)) => (Some(now), changes),
            None => (None, any()),
        },
        None => (compared(&snapshot, Digests::default(), reader)?.map(|(now, _)| now), Vec::new()),
    };
    let pause = match digests {
        Some(_) => (begun.elapsed() * PAUSE_FACTOR).clamp(LOOK_EVERY, IDLE_EVERY),
        None => COARSE_EVERY,
    };
    Ok((Seen { moment, digests, pause }, Some(changes)))
}

/// Any document may have changed.
fn any() -> Vec<Change> {
    vec![(DocumentKind::Credential, None), (DocumentKind::Config, None)]
}

/// The digests of all documents, and what differs from those before. None: they are too many or too large.
fn compared(
    snapshot: &Snapshot,
    mut before: Digests,
    reader: &Weak<Reader>,
) -> Result<Option<(Digests, Vec<Change>)>> {
    let mut now = Digests::with_capacity_and_hasher(before.len(), before.hasher().clone());
    let (mut changes, mut bytes) = (Vec::new(), 0);
    for names in [RecordKey::credentials(), RecordKey::configs()] {
        for stored in snapshot.records(names)? {
            let stored = stored?;
            bytes += stored.bytes();
            if now.len() == MOST_DOCUMENTS || bytes > MOST_BYTES {
                return Ok(None);
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
                changes.push(change_of(&name));
            }
            now.insert(name, digest);
        }
    }
    // The others were deleted.
    changes.extend(before.keys().map(|name| change_of(name)));
    Ok(Some((now, changes)))
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
