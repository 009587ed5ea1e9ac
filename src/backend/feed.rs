//! Tells the watchers of one store what changes: one source, many watchers.
//!
//! ```text
//! a task runs Source::follow while there are watchers
//!          |  tells
//!       [ ring of the newest changes ]        the committers of File and Memory tell it directly
//!          |         |         |
//!       watcher   watcher   watcher           each at a place of its own
//! ```

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_core::Stream;
use futures_util::stream;
use tokio::{
    sync::Notify,
    task::{AbortHandle, consume_budget},
    time::sleep,
};

use crate::{
    Error, ErrorKind, Key, Record, Result,
    capability::Wake,
    event::{Cursor, Event, WatchOptions},
    history::DocumentKind,
    layer::system_name,
};

/// The changes that are kept for watchers that have not read them.
const RING: usize = 8192;

/// How often a source that has nothing to tell says so. The contract promises 5 s.
pub(crate) const IDLE_EVERY: Duration = Duration::from_secs(2);

/// The first pause before connecting again is a random time up to this one, so that processes that were cut
/// off at the same time do not come back at the same time. Later ones are up to twice as long, each.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// What changed: a record, or if the backend doesn't know which, any of a kind.
pub(crate) type Change = (DocumentKind, Option<Key>);

/// Where the changes come from. It is a handle that does not keep the store open.
pub(crate) trait Source: Clone + Send + Sync + 'static {
    /// Tells what changes, until it can't go on.
    ///
    /// Calls [`Teller::started`] or [`Teller::resumed`] once every later change will be told, and
    /// [`Teller::idle`] about every [`IDLE_EVERY`] as long as nothing is missed. It is called again after a
    /// pause if the error is one that waiting can heal, and dropped when the last watcher is gone.
    fn follow(&self, teller: &Teller) -> impl Future<Output = Error> + Send;

    /// The changes since this cursor until now, from another source than the feed. `None`: they are not known.
    fn since(&self, cursor: &Cursor) -> impl Future<Output = Result<Option<Vec<Change>>>> + Send;
}

/// The feed of one store, which handles to the store share.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Shared>);

struct Shared {
    label: &'static str,
    /// Marks the cursors that are places in this ring.
    id: u64,
    /// Whether there was a watcher: from then on committers tell what they change.
    was_watched: AtomicBool,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// The newest changes. The first one has this number.
    ring: VecDeque<Told>,
    first: u64,
    /// The cursor of the source, if it has its own.
    cursor: Option<Cursor>,
    /// How often the source has said that nothing was missed.
    idles: u64,
    /// Whether the source tells every change now.
    is_live: bool,
    watchers: usize,
    task: Option<AbortHandle>,
    /// The number of tasks that were begun. An earlier one can still run when the next one begins.
    tasks: u64,
    ended: Option<Error>,
}

struct Told {
    /// None: changes may have been missed.
    change: Option<Change>,
    /// Where to go on after it, if the source has its own cursors.
    cursor: Option<Cursor>,
}

impl State {
    /// The number of the next change.
    fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    fn push(&mut self, change: Option<Change>) {
        if self.ring.len() == RING {
            self.ring.pop_front();
            self.first += 1;
        }
        self.ring.push_back(Told { change, cursor: self.cursor.clone() });
    }

    /// What was told from this number on. `None`: some of it is no longer there, or changes were missed.
    fn told_since(&self, place: u64) -> Option<Vec<Change>> {
        let skipped = usize::try_from(place.checked_sub(self.first)?).ok()?;
        if skipped > self.ring.len() {
            return None;
        }
        self.ring.range(skipped..).map(|told| told.change.clone()).collect()
    }
}

impl Feed {
    pub(crate) fn new(label: &'static str) -> Self {
        Self(Arc::new(Shared {
            label,
            id: fastrand::u64(..),
            was_watched: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a committer has to tell what it changes. Ask after the change can be read.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.0.was_watched.load(Ordering::SeqCst)
    }

    /// Tells what a committer has changed, if something has ever watched.
    #[inline]
    pub(crate) fn tell<I: IntoIterator<Item = Change>>(&self, changes: impl FnOnce() -> I) {
        if self.is_watched() {
            self.tell_all(changes());
        }
    }

    #[cold]
    fn tell_all(&self, changes: impl IntoIterator<Item = Change>) {
        let mut state = self.lock();
        changes.into_iter().for_each(|change| state.push(Some(change)));
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Ends all watches, with [`Closed`](ErrorKind::Closed).
    pub(crate) fn close(&self) {
        self.end(Error::closed());
    }

    fn end(&self, error: Error) {
        let mut state = self.lock();
        state.is_live = false;
        state.ended.get_or_insert(error);
        let task = state.task.take();
        drop(state);
        self.0.changed.notify_waiters();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// The changes since a cursor that is a place in this ring.
    pub(crate) fn since(&self, cursor: &Cursor) -> Option<Vec<Change>> {
        let (id, place) = cursor.place(self.0.label)?.split_once('.')?;
        let is_own = u64::from_str_radix(id, 16) == Ok(self.0.id);
        let place = place.parse().ok().filter(|_| is_own)?;
        self.lock().told_since(place)
    }

    /// The cursor of the source, or of a place in the ring.
    fn cursor(&self, of_source: Option<&Cursor>, place: u64) -> Cursor {
        let of_ring = || Cursor::at(self.0.label, format_args!("{:x}.{place}", self.0.id));
        of_source.cloned().unwrap_or_else(of_ring)
    }

    fn end_of(&self, state: &State) -> Place {
        let next = state.end();
        Place { next, idles: state.idles, cursor: self.cursor(state.cursor.as_ref(), next) }
    }

    /// The next event for a watcher at this place.
    fn read(&self, place: &mut Place, options: &WatchOptions) -> Option<Event> {
        let state = self.lock();
        if place.next < state.first {
            *place = self.end_of(&state);
            return Some(Event::Resync { cursor: place.cursor.clone() });
        }
        while place.next < state.end() {
            let told = &state.ring[(place.next - state.first) as usize];
            place.next += 1;
            let cursor = || self.cursor(told.cursor.as_ref(), place.next);
            match &told.change {
                None => return Some(Event::Resync { cursor: cursor() }),
                Some((kind, key)) if options.includes(*kind) => {
                    return Some(Event::Changed { kind: *kind, key: key.clone(), cursor: cursor() });
                }
                Some(_) => {}
            }
        }
        (place.idles != state.idles).then(|| {
            place.idles = state.idles;
            Event::Idle { cursor: self.cursor(state.cursor.as_ref(), place.next) }
        })
    }

    /// Ends at the next change of this record. `None` if nothing watches.
    pub(crate) fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        let place = Some(self.lock()).filter(|state| state.is_live)?.end();
        let (feed, key) = (self.clone(), key.clone());
        Some(Box::pin(async move {
            loop {
                let mut changed = pin!(feed.0.changed.notified());
                changed.as_mut().enable();
                let concerns = |(of, changed): &Change| {
                    *of == kind && changed.as_ref().is_none_or(|changed| *changed == key)
                };
                let is_awaited = {
                    let state = feed.lock();
                    let told = state.told_since(place);
                    state.is_live && told.is_some_and(|told| !told.iter().any(concerns))
                };
                if !is_awaited {
                    return;
                }
                changed.await;
            }
        }))
    }

    /// The stream of a watcher.
    pub(crate) fn watch<S: Source>(
        &self,
        source: S,
        options: WatchOptions,
    ) -> impl Stream<Item = Result<Event>> + Send + use<S> {
        let first = Watcher { feed: self.clone(), source, options, at: At::Begin, is_counted: false };
        stream::unfold(Some(first), |watcher| async {
            let mut watcher = watcher?;
            // A stream that is always ready would starve other tasks.
            consume_budget().await;
            match watcher.next().await {
                Ok(event) => Some((Ok(event), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Runs the source in a task, if it does not run. The runtime of an earlier task may be gone.
    fn run<S: Source>(&self, source: &S) {
        let mut state = self.lock();
        if state.ended.is_some() || state.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        state.tasks += 1;
        let (teller, source) = (Teller { feed: self.clone(), task: state.tasks }, source.clone());
        state.task = Some(tokio::spawn(async move { teller.run(source).await }).abort_handle());
    }
}

/// What a source tells.
pub(crate) struct Teller {
    feed: Feed,
    task: u64,
}

impl Teller {
    async fn run(&self, source: impl Source) {
        // If the task is aborted, or its runtime ends, watchers must not believe that it goes on.
        let _stopped = Stopped(self);
        let label = self.feed.0.label;
        let mut longest = FIRST_PAUSE;
        loop {
            let error = source.follow(self).await;
            let mut was_live = false;
            self.update(|state| was_live = std::mem::take(&mut state.is_live));
            if !heals(&error) {
                return self.feed.end(error);
            }
            if was_live {
                longest = FIRST_PAUSE;
            }
            let system = system_name(label);
            tracing::warn!(
                target: "gateway_storage",
                system,
                error = %error,
                "a watch was cut off; it connects again"
            );
            metrics::counter!("gateway_storage.watch.reconnects", "db.system.name" => system).increment(1);
            sleep(longest.mul_f64(fastrand::f64())).await;
            longest = LONGEST_PAUSE.min(longest * 2);
        }
    }

    /// Changes the state, unless another task follows the source now.
    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.feed.lock();
        if state.tasks == self.task {
            change(&mut state);
        }
        drop(state);
        self.feed.0.changed.notify_waiters();
    }

    /// The cursor that was told last, to go on from there.
    pub(crate) fn last(&self) -> Option<Cursor> {
        self.feed.lock().cursor.clone()
    }

    /// Every change from now on is told, and those since the last one may have been missed.
    pub(crate) fn started(&self, cursor: Option<Cursor>) {
        self.update(|state| {
            (state.cursor, state.is_live) = (cursor, true);
            state.push(None);
        });
    }

    /// Every change since the last one that was told is told from now on.
    pub(crate) fn resumed(&self) {
        self.update(|state| state.is_live = true);
    }

    /// Tells changes, and the cursor after them. Before the last of them the earlier cursor holds.
    pub(crate) fn tell(&self, changes: impl IntoIterator<Item = Change>, cursor: Option<Cursor>) {
        self.update(|state| {
            let mut changes = changes.into_iter().peekable();
            while let Some(change) = changes.next() {
                if changes.peek().is_none() {
                    state.cursor.clone_from(&cursor);
                }
                state.push(Some(change));
            }
        });
    }

    /// Tells that nothing was missed until this cursor.
    pub(crate) fn idle(&self, cursor: Option<Cursor>) {
        self.update(|state| {
            state.cursor = cursor;
            state.idles += 1;
        });
    }
}

/// Says that the source does not run, when it is dropped.
struct Stopped<'t>(&'t Teller);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.update(|state| state.is_live = false);
    }
}

/// Whether waiting can heal the error.
fn heals(error: &Error) -> bool {
    use ErrorKind::{Busy, Conflict, Internal, Timeout, Unavailable};
    matches!(error.kind(), Busy | Conflict | Internal | Timeout | Unavailable)
}

/// A watcher, and where it is.
struct Watcher<S> {
    feed: Feed,
    source: S,
    options: WatchOptions,
    at: At,
    is_counted: bool,
}

enum At {
    /// Before the first event.
    Begin,
    /// The changes since its cursor come first.
    Behind {
        changes: VecDeque<Change>,
        from: Cursor,
        then: Place,
    },
    Ring(Place),
}

/// A place in the ring.
struct Place {
    /// The number of the next change.
    next: u64,
    /// How often the source had said that nothing was missed.
    idles: u64,
    /// Where a later watch goes on. For the first event only.
    cursor: Cursor,
}

impl<S: Source> Watcher<S> {
    async fn next(&mut self) -> Result<Event> {
        loop {
            let feed = self.feed.clone();
            let mut changed = pin!(feed.0.changed.notified());
            changed.as_mut().enable();
            self.join();
            if matches!(self.at, At::Begin)
                && let Some(then) = self.end()
            {
                self.at = match self.options.from.take() {
                    None => return Ok(self.resync(then)),
                    Some(from) => match self.since(&from).await? {
                        None => return Ok(self.resync(then)),
                        Some(changes) => At::Behind { changes: changes.into(), from, then },
                    },
                };
            }
            match &mut self.at {
                At::Begin => {}
                At::Behind { changes, from, then } => {
                    let of_kind = |(kind, _): &Change| self.options.includes(*kind);
                    while let Some(change) = changes.pop_front() {
                        if of_kind(&change) {
                            let (kind, key) = change;
                            return Ok(Event::Changed { kind, key, cursor: from.clone() });
                        }
                    }
                    // It has caught up.
                    let (next, idles, cursor) = (then.next, then.idles, then.cursor.clone());
                    self.at = At::Ring(Place { next, idles, cursor: cursor.clone() });
                    return Ok(Event::Idle { cursor });
                }
                At::Ring(place) => {
                    if let Some(event) = feed.read(place, &self.options) {
                        return Ok(event);
                    }
                }
            }
            if let Some(error) = feed.lock().ended.clone() {
                return Err(error);
            }
            changed.await;
        }
    }

    /// Counts as a watcher, and runs the source.
    fn join(&mut self) {
        if !self.is_counted {
            self.is_counted = true;
            self.feed.0.was_watched.store(true, Ordering::SeqCst);
            self.feed.lock().watchers += 1;
        }
        self.feed.run(&self.source);
    }

    /// The end of the ring, once the source tells every change.
    fn end(&self) -> Option<Place> {
        let state = self.feed.lock();
        state.is_live.then(|| self.feed.end_of(&state))
    }

    fn resync(&mut self, place: Place) -> Event {
        let cursor = place.cursor.clone();
        self.at = At::Ring(place);
        Event::Resync { cursor }
    }

    /// The changes since the cursor. Waits while the store can't be reached.
    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        let mut longest = FIRST_PAUSE;
        loop {
            match self.source.since(cursor).await {
                Err(error) if heals(&error) => sleep(longest.mul_f64(fastrand::f64())).await,
                known => return known,
            }
            longest = LONGEST_PAUSE.min(longest * 2);
        }
    }
}

impl<S> Drop for Watcher<S> {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let mut state = self.feed.lock();
        state.watchers -= 1;
        if state.watchers > 0 {
            return;
        }
        state.is_live = false;
        // The next watch tries again what was refused.
        let is_closed = |error: &mut Error| error.kind() == ErrorKind::Closed;
        let refused = state.ended.take_if(|error| !is_closed(error));
        let task = state.task.take();
        drop((state, refused));
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// The change of this record, if records of its kind are watched.
pub(crate) fn change_of(record: &Record) -> Option<Change> {
    match record {
        Record::Credential { id, .. } => Some((DocumentKind::Credential, Some(id.clone()))),
        Record::Config { key, .. } => Some((DocumentKind::Config, Some(key.clone()))),
        Record::Usage { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::time::Instant;

    use super::*;

    /// A source that is cut off when it is told to, and counts how often it was connected.
    #[derive(Clone, Default)]
    struct Cut {
        cut: Arc<Notify>,
        connected: Arc<Mutex<Vec<Instant>>>,
        refusal: Option<ErrorKind>,
    }

    impl Source for Cut {
        async fn follow(&self, teller: &Teller) -> Error {
            if let Some(kind) = self.refusal {
                return Error::new(kind, "refused");
            }
            self.connected.lock().unwrap().push(Instant::now());
            teller.started(Some(Cursor::at("test", self.connected.lock().unwrap().len())));
            let mut cut = pin!(self.cut.notified());
            loop {
                tokio::select! {
                    () = &mut cut => return Error::new(ErrorKind::Unavailable, "cut"),
                    () = sleep(IDLE_EVERY) => teller.idle(teller.last()),
                }
            }
        }

        async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
            let known = cursor.place("test").map(|_| vec![change("since")]);
            Ok(known)
        }
    }

    fn change(key: &str) -> Change {
        (DocumentKind::Config, Some(Key::new(key).unwrap()))
    }

    fn watch(feed: &Feed, source: &Cut) -> std::pin::Pin<Box<dyn Stream<Item = Result<Event>> + Send>> {
        Box::pin(feed.watch(source.clone(), WatchOptions::default()))
    }

    #[track_caller]
    fn name(event: Option<Result<Event>>) -> &'static str {
        event.unwrap().unwrap().name()
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_watches_that_are_cut_off_at_once_come_back_one_by_one() {
        let sources: Vec<Cut> = (0..1000).map(|_| Cut::default()).collect();
        let mut watches: Vec<_> = sources.iter().map(|source| watch(&Feed::new("test"), source)).collect();
        for watch in &mut watches {
            assert_eq!(name(watch.next().await), "resync");
        }
        let cut = Instant::now();
        sources.iter().for_each(|source| source.cut.notify_one());
        sleep(Duration::from_secs(5)).await;
        let mut tenths = [0; 10];
        for source in &sources {
            let again = source.connected.lock().unwrap()[1].duration_since(cut);
            tenths[again.as_millis() as usize / 100] += 1;
        }
        assert!(tenths.iter().all(|tenth| (50..200).contains(tenth)), "{tenths:?}");
        for watch in &mut watches {
            assert_eq!(name(watch.next().await), "resync");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_source_runs_while_there_are_watchers() {
        let (feed, source) = (Feed::new("test"), Cut::default());
        let connected = || source.connected.lock().unwrap().len();
        let (mut one, mut two) = (watch(&feed, &source), watch(&feed, &source));
        assert_eq!(connected(), 0, "a watch begins with its first poll");
        assert_eq!((name(one.next().await), name(two.next().await), connected()), ("resync", "resync", 1));
        assert_eq!((name(one.next().await), name(two.next().await)), ("idle", "idle"));
        drop(one);
        assert_eq!((name(two.next().await), connected()), ("idle", 1));
        drop(two);
        assert!(feed.next_change(DocumentKind::Config, &Key::new("a").unwrap()).is_none());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(connected(), 1);
        assert_eq!(Arc::strong_count(&source.cut), 1, "the task has ended");
        assert_eq!((name(watch(&feed, &source).next().await), connected()), ("resync", 2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_does_not_heal_ends_each_watch_and_is_tried_again_by_a_later_one() {
        let feed = Feed::new("test");
        let source = Cut { refusal: Some(ErrorKind::Denied), ..Cut::default() };
        for _ in 0..2 {
            let (mut one, mut two) = (watch(&feed, &source), watch(&feed, &source));
            for watch in [&mut one, &mut two] {
                assert_eq!(watch.next().await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
                assert!(watch.next().await.is_none());
            }
        }
        assert_eq!(name(watch(&feed, &Cut::default()).next().await), "resync");
        feed.close();
        let closed = watch(&feed, &Cut::default()).next().await.unwrap().unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn the_cursor_of_an_event_is_not_after_later_changes() {
        let (feed, source) = (Feed::new("test"), Cut::default());
        let mut events = watch(&feed, &source);
        assert_eq!(name(events.next().await), "resync");
        let teller = Teller { feed: feed.clone(), task: feed.lock().tasks };
        teller.tell([change("a"), change("b")], Some(Cursor::at("test", "later")));
        let [a, b] = [events.next().await, events.next().await].map(|event| event.unwrap().unwrap());
        assert_eq!((a.cursor().as_str(), b.cursor().as_str()), ("test:1", "test:later"));
        // A task that was replaced tells nothing.
        let stale = Teller { feed: feed.clone(), task: teller.task + 1 };
        stale.tell([change("c")], None);
        assert!(events.next().now_or_never().is_none());
    }
}
