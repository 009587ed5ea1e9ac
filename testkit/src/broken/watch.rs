//! `Watch` for `Broken`, with its faults.

use std::sync::atomic::Ordering;

use futures_util::{
    Stream, StreamExt,
    future::{Either, pending},
};
use gateway_storage::{
    ConfigStore, CredentialStore, ErrorKind, Key, Result,
    history::DocumentKind,
    watch::{Event, Watch, WatchOptions},
};

use super::{Broken, Fault::*};

impl Broken {
    async fn has_record(&self, kind: DocumentKind, key: &Key) -> bool {
        match kind {
            DocumentKind::Config => self.memory.get_config(key).await.is_ok(),
            _ => self.memory.get_credential(key).await.is_ok(),
        }
    }

    /// The event, as this fault tells it. `at` is its number.
    async fn told(&self, at: usize, is_newest: bool, resumes: bool, event: Event) -> Option<Event> {
        Some(match (self.fault, event) {
            (WatchBeginsSilently, Event::Resync { .. }) if at == 0 => return None,
            (WatchForgetsChanges, Event::Resync { .. }) if at == 0 && resumes => return None,
            (WatchTrustsCursors, Event::Resync { cursor }) if at == 0 && resumes => Event::Idle { cursor },
            (WatchHidesGaps, Event::Resync { .. }) if at > 0 => return None,
            (WatchIsNeverIdle, Event::Idle { .. }) => return None,
            (WatchTellsOne, Event::Changed { .. }) if !is_newest => return None,
            (WatchLosesCredentials, Event::Changed { kind: DocumentKind::Credential, .. }) => return None,
            (WatchLosesDeletes, Event::Changed { kind, key: Some(key), cursor }) => {
                let is_stored = self.has_record(kind, &key).await;
                return is_stored.then_some(Event::Changed { kind, key: Some(key), cursor });
            }
            (WatchLosesUnderLoad, Event::Changed { key: Some(key), .. }) if key.as_str() == "shared00003" => {
                return None;
            }
            (WatchFoldsCase, Event::Changed { kind, key: Some(key), cursor }) => {
                let key = Key::new(&key.as_str().to_lowercase()).ok();
                Event::Changed { kind, key: key.or_else(|| Key::new("x").ok()), cursor }
            }
            (_, event) => event,
        })
    }
}

impl Watch for Broken {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let mut options = options;
        let resumes = options.from.is_some();
        match self.fault {
            WatchForgetsChanges => options.from = None,
            WatchTellsAllKinds => options.kind = None,
            _ => {}
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let events = self.memory.watch(options).enumerate().filter_map(move |(at, event)| async move {
            match event {
                Ok(event) => {
                    self.told(at, self.calls.load(Ordering::Relaxed) == number, resumes, event).await.map(Ok)
                }
                Err(error) if self.has(WatchEndsSilently) && error.kind() == ErrorKind::Closed => None,
                Err(_) if self.has(WatchSurvivesClose) => pending().await,
                Err(error) => Some(Err(error)),
            }
        });
        // A reader of batches that keeps the first event of each.
        if self.has(WatchMergesBatches) {
            let firsts =
                events.ready_chunks(1000).filter_map(|mut ready| async move { Some(ready.swap_remove(0)) });
            return Either::Left(firsts);
        }
        Either::Right(events)
    }
}
