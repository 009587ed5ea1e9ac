//! Watches: the committer tells what this process changes, and a look every 20 ms whether others have
//! committed.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_core::Stream;
use tokio::time::{Instant, sleep};

use super::{File, reader::Reader, work::work};
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

impl Watch for File {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let (feed, reader) = (&self.store.feed, Arc::downgrade(&self.store.reader));
        feed.watch(Changes { feed: feed.clone(), reader }, options)
    }
}

/// The changes of a store, which this does not keep open.
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
        let mut seen = self.moment().await?;
        // What others wrote while nothing looked is not known.
        teller.started(None);
        let (mut pause, mut idle) = (LOOK_EVERY, Instant::now());
        loop {
            sleep(pause).await;
            pause = LOOK_EVERY;
            if !self.reader()?.is_at(seen)? {
                let now = self.moment().await?;
                if now != seen {
                    teller.tell([(DocumentKind::Credential, None), (DocumentKind::Config, None)], None);
                    (seen, pause) = (now, PAUSE);
                }
            }
            if idle.elapsed() >= IDLE_EVERY {
                teller.idle(None);
                idle = Instant::now();
            }
        }
    }

    /// See [`Reader::moment`]. It has no deadline: there is one look at a time, also at a disk that does not
    /// answer.
    async fn moment(&self) -> Result<u64> {
        let reader = self.reader.clone();
        work(Duration::MAX, false, move || reader.upgrade().ok_or_else(Error::closed)?.moment()).await
    }
}
