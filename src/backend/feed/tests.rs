//! Tests of feeds, with a source that is cut off.

use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_core::Stream;
use tokio::{sync::Notify, time::sleep};

use super::*;
use crate::ErrorKind;

/// A source that is cut off when it is told to, and counts how often it was connected.
#[derive(Clone, Default)]
struct Cut {
    cut: Arc<Notify>,
    connected: Arc<Mutex<Vec<Instant>>>,
    refusal: Option<ErrorKind>,
}

impl Source for Cut {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        if let Some(kind) = self.refusal {
            return Err(Error::new(kind, "refused"));
        }
        self.connected.lock().unwrap().push(Instant::now());
        teller.started(Some(Cursor::at("test", self.connected.lock().unwrap().len())));
        let mut cut = pin!(self.cut.notified());
        loop {
            tokio::select! {
                () = &mut cut => return Err(Error::new(ErrorKind::Unavailable, "cut")),
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

fn watch(feed: &Feed, source: &Cut) -> Pin<Box<dyn Stream<Item = Result<Event>> + Send>> {
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
        // The timer counts in milliseconds, and rounds up.
        tenths[(again.as_millis() as usize - 1) / 100] += 1;
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
    let teller = Teller { shared: feed.0.clone(), task: feed.0.lock().tasks };
    teller.tell([change("a"), change("b")], Some(Cursor::at("test", "later")));
    let [a, b] = [events.next().await, events.next().await].map(|event| event.unwrap().unwrap());
    assert_eq!((a.cursor().as_str(), b.cursor().as_str()), ("test:1", "test:later"));
    // A task that was replaced tells nothing.
    let stale = Teller { shared: feed.0.clone(), task: teller.task + 1 };
    stale.tell([change("c")], None);
    assert!(events.next().now_or_never().is_none());
}
