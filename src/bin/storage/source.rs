//! Where records come from, whatever it is: one type, so that a copy is compiled once for each target and not for each pair.

use std::{
    cell::OnceCell,
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

use crate::{backends::Operated, commands::Run, door::Door, failure::Failure, output::Answer, place::label};

/// Sorted, as an export is.
pub(crate) type Records = Pin<Box<dyn Stream<Item = Result<Record>> + Send>>;

/// Where records come from.
pub(crate) struct Source {
    /// What tells it from others, without a password. Without a label a copy can't be resumed.
    pub(crate) label: Option<String>,
    /// How many records there are, if that is known: credentials, config values, and records of counters.
    pub(crate) total: Option<u64>,
    /// Whether it can be read again.
    pub(crate) can_repeat: bool,
    read: Box<dyn Fn() -> Records>,
    close: Pin<Box<dyn Future<Output = ()>>>,
}

impl Source {
    /// A source that is read by a function: once, or as often as it is wanted.
    pub(crate) fn new(label: Option<String>, can_repeat: bool, read: impl Fn() -> Records + 'static) -> Self {
        Self { label, total: None, can_repeat, read: Box::new(read), close: Box::pin(async {}) }
    }

    /// All records, from the beginning.
    pub(crate) fn records(&self) -> Records {
        (self.read)()
    }

    /// Lets go of it.
    pub(crate) async fn close(self) {
        self.close.await;
    }

    /// The export of a store.
    fn of<B: Exportable>(url: &str, storage: Storage<B>) -> Self {
        let closing = storage.clone();
        let close = Box::pin(async move {
            // Nothing was written.
            let _ = closing.close().await;
        });
        let source = Self::new(Some(label(url)), true, move || export(storage.clone()));
        Self { close, ..source }
    }
}

/// How many pages are ahead of who reads them, and how many records a page has: a record can have a mebibyte.
const AHEAD: usize = 1;
const PAGE: usize = 64;

/// An export that owns its store, read ahead.
fn export<B: Exportable>(storage: Storage<B>) -> Records {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move { send(storage.export(), sender).await });
    received(receiver)
}

/// Records that are read on by a thread while those before are written: reading a file is work, and blocks.
pub(crate) fn ahead(records: impl Stream<Item = Result<Record>> + Send + 'static) -> Records {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let runtime = Handle::current();
    thread::spawn(move || runtime.block_on(send(records, sender)));
    received(receiver)
}

/// An empty page is the end: without it whoever reads has failed.
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
                let error = Error::new(ErrorKind::Internal, "the source ended in the middle of its records");
                Some((vec![Err(error)], None))
            }
        }
    });
    Box::pin(pages.map(stream::iter).flatten())
}

/// A command that opens a store to read it.
#[derive(Default)]
pub(crate) struct OpenSource(OnceCell<Source>);

impl OpenSource {
    pub(crate) fn opened(self) -> Result<Source, Failure> {
        self.0.into_inner().ok_or_else(|| Failure::line("the source was not opened"))
    }
}

impl<B: Operated + Exportable> Run<B> for OpenSource {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        let storage = door.read_apart().await?;
        let total = counts(&storage).await;
        self.0.get_or_init(|| Source { total, ..Source::of(door.url(), storage) });
        Ok(Answer::Done)
    }
}

/// How many records a store has, as [`Source::total`] counts them. Only for a bar, and it can take a while.
pub(crate) async fn counts<B: Exportable>(storage: &Storage<B>) -> Option<u64> {
    let stats = if stderr().is_terminal() { storage.stats().await.ok()? } else { return None };
    Some(stats.credential_count + stats.config_count + stats.usage_record_count)
}

/// Counts records as [`Source::total`] does: a record of counters is one.
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
    async fn a_source_that_breaks_off_is_not_one_that_ends() {
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
