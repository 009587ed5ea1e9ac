//! The source of a copy. One type for all sources, so that a copy is compiled once per target and not once
//! per pair.

use std::{
    io::{IsTerminal, stderr},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use futures_util::{Stream, StreamExt, stream};
use gateway_storage::{Error, ErrorKind, Exportable, Key, Record, Result, Storage};
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    backend::CliBackend,
    dispatch::{Run, on_its_backend},
    identity::identity_of,
    session::Session,
    term::{failure::Failure, log::Log},
};

/// Records in the order of an export.
pub(crate) type Records = Pin<Box<dyn Stream<Item = Result<Record>> + Send>>;

/// A source of records.
pub(crate) struct Source {
    /// Identifies the source, without a password. Without it a copy can't be resumed.
    pub(crate) identity: Option<String>,
    /// The number of credentials, config values and usage records, if known.
    pub(crate) total: Option<u64>,
    /// Whether it can be read more than once.
    pub(crate) can_repeat: bool,
    read: Box<dyn Fn() -> Records>,
    close: Pin<Box<dyn Future<Output = ()>>>,
}

impl Source {
    /// A source that a function reads.
    pub(crate) fn new(
        identity: Option<String>,
        can_repeat: bool,
        read: impl Fn() -> Records + 'static,
    ) -> Self {
        Self { identity, total: None, can_repeat, read: Box::new(read), close: Box::pin(async {}) }
    }

    /// All records, from the beginning.
    pub(crate) fn records(&self) -> Records {
        (self.read)()
    }

    /// Closes the source. Nothing was written to it, so an interrupt of this loses nothing.
    pub(crate) async fn close(self) {
        self.close.await;
    }

    /// The export of a store.
    fn of<B: Exportable>(url: &str, storage: Storage<B>) -> Self {
        let closing = storage.clone();
        let close = Box::pin(async move {
            // Nothing was written, so an error loses nothing.
            let _ = closing.close().await;
        });
        let source = Self::new(Some(identity_of(url)), true, move || export(storage.clone()));
        Self { close, ..source }
    }
}

/// Pages read ahead. Few, because a record can have 1 MiB.
const AHEAD: usize = 1;
/// Records per page.
const PAGE: usize = 64;

/// An export, read ahead, that owns its store.
fn export<B: Exportable>(storage: Storage<B>) -> Records {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move { send(storage.export(), sender).await });
    received(receiver)
}

/// Reads records ahead on a thread, because reading a file takes time and blocks.
pub(crate) fn ahead(records: impl Stream<Item = Result<Record>> + Send + 'static) -> Records {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let runtime = Handle::current();
    thread::spawn(move || runtime.block_on(send(records, sender)));
    received(receiver)
}

/// Sends an empty page at the end; its absence means that the reading task failed.
async fn send(records: impl Stream<Item = Result<Record>> + Send, to: mpsc::Sender<Vec<Result<Record>>>) {
    let mut pages = pin!(records.ready_chunks(PAGE).chain(stream::once(async { Vec::new() })));
    while let Some(page) = pages.next().await {
        if to.send(page).await.is_err() {
            break;
        }
    }
}

fn received(receiver: mpsc::Receiver<Vec<Result<Record>>>) -> Records {
    let pages = stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(page) if page.is_empty() => None,
            Some(page) => Some((page, Some(receiver))),
            None => {
                let error = Error::new(ErrorKind::Internal, "reading the source ended unexpectedly");
                Some((vec![Err(error)], None))
            }
        }
    });
    Box::pin(pages.map(stream::iter).flatten())
}

/// Opens the store of a URL as a source.
pub(crate) async fn open(url: &str, log: Log) -> Result<Source, Failure> {
    on_its_backend!(url, log, &OpenStore, "export", Source)
}

/// Opens the session's store as a source.
struct OpenStore;

impl<B: CliBackend + Exportable> Run<B, Source> for OpenStore {
    async fn run(&self, session: &Session<'_, B>) -> Result<Source, Failure> {
        let storage = session.read_owned().await?;
        let total = counts(&storage).await;
        Ok(Source { total, ..Source::of(session.url, storage) })
    }
}

/// The number of records in a store, as in [`Source::total`]. Only for a progress bar, because counting can
/// take long.
pub(crate) async fn counts<B: Exportable>(storage: &Storage<B>) -> Option<u64> {
    let stats = if stderr().is_terminal() { storage.stats().await.ok()? } else { return None };
    Some(stats.credential_count + stats.config_count + stats.usage_record_count)
}

/// Counts records as [`Source::total`] does: all counters of one key are one usage record.
pub(crate) fn counted(
    records: impl Stream<Item = Result<Record>> + Send,
    count: Arc<AtomicU64>,
) -> impl Stream<Item = Result<Record>> + Send {
    let mut last: Option<Key> = None;
    records.inspect(move |record| {
        let is_new = match record {
            Ok(Record::Usage { key, .. }) if last.as_ref() == Some(key) => false,
            Ok(Record::Usage { key, .. }) => {
                last = Some(key.clone());
                true
            }
            Ok(_) => true,
            Err(_) => false,
        };
        count.fetch_add(is_new.into(), Ordering::Relaxed);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_that_panics_does_not_look_complete() {
        let key = Key::new("k").unwrap();
        let one = stream::iter([Ok(Record::Usage { key: key.clone(), field: key, count: 1 })]);
        let breaks = one.chain(stream::once(async { panic!("a defect") }));
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(async move { send(breaks, sender).await });
        let records: Vec<_> = received(receiver).collect().await;
        assert_eq!(records.last().unwrap().as_ref().unwrap_err().kind(), ErrorKind::Internal);

        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(async move { send(stream::empty(), sender).await });
        assert_eq!(received(receiver).count().await, 0);
    }
}
