//! Where records come from, whatever it is: one type, so that a copy is compiled once for each target and not for each pair.

use std::{
    cell::OnceCell,
    io::{IsTerminal, stderr},
    path::absolute,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use futures_util::{Stream, StreamExt, stream};
use gateway_storage::{Exportable, Key, Record, Result, Storage};
use tokio::{runtime::Handle, sync::mpsc};

use crate::{backends::Operated, commands::Run, door::Door, failure::Failure, output::Answer};

/// Sorted, as an export is.
pub(crate) type Records = Pin<Box<dyn Stream<Item = Result<Record>> + Send>>;

/// Where records come from.
pub(crate) struct Source {
    /// What tells it from others, without a password.
    pub(crate) label: String,
    /// How many records there are, if that is known: credentials, config values, and records of counters.
    pub(crate) total: Option<u64>,
    /// Whether it can be read again.
    pub(crate) can_repeat: bool,
    read: Box<dyn Fn() -> Records>,
    close: Pin<Box<dyn Future<Output = ()>>>,
}

impl Source {
    /// A source that is read by a function: once, or as often as it is wanted.
    pub(crate) fn new(label: String, can_repeat: bool, read: impl Fn() -> Records + 'static) -> Self {
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
        let source = Self::new(label(url), true, move || export(storage.clone()));
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

async fn send(records: impl Stream<Item = Result<Record>> + Send, to: mpsc::Sender<Vec<Result<Record>>>) {
    let mut pages = pin!(records.ready_chunks(PAGE));
    while let Some(page) = pages.next().await {
        if to.send(page).await.is_err() {
            break;
        }
    }
}

fn received(receiver: mpsc::Receiver<Vec<Result<Record>>>) -> Records {
    let pages = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    Box::pin(pages.map(stream::iter).flatten())
}

/// What tells a store from others: its URL without user, password and what does not say where it is.
pub(crate) fn label(url: &str) -> String {
    let (place, options) = url.split_once('?').unwrap_or((url, ""));
    let mut label = match place.split_once(':') {
        Some(("file", path)) => {
            let whole = absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned));
            format!("file:{}", whole.unwrap_or_else(|| path.to_owned()))
        }
        _ => match place.split_once("//") {
            Some((scheme, rest)) => {
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                format!("{scheme}//{host}")
            }
            None => place.to_owned(),
        },
    };
    let names = ["prefix=", "schema="];
    let mut options = options.split('&').filter(|option| names.iter().any(|name| option.starts_with(name)));
    if let Some(option) = options.next() {
        label.push('?');
        label.push_str(option);
    }
    label
}

/// What an error calls a server. A store in a folder is named by its errors.
pub(crate) fn server(url: &str) -> Option<String> {
    let (_, options) = url.split_once('?').unwrap_or((url, ""));
    let label = label(url);
    // A login with a `?` in it ends somewhere in the options.
    let is_plain = label.contains("://") && !label.starts_with("file:") && !options.contains('@');
    is_plain.then_some(label)
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
        let storage = door.open_apart().await?;
        // Only for the bar, and it can take a while.
        let stats = if stderr().is_terminal() { storage.stats().await.ok() } else { None };
        let total = stats.map(|stats| stats.credential_count + stats.config_count + stats.usage_record_count);
        self.0.get_or_init(|| Source { total, ..Source::of(door.url(), storage) });
        Ok(Answer::Done)
    }
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

    #[test]
    fn a_label_names_the_store_and_no_secret() {
        for (url, wanted) in [
            ("redis://user:p@ss@host:1/0?prefix=a:&read_timeout=1s", "redis://host:1/0?prefix=a:"),
            ("postgres://u:hunter2@h/db?password=x&schema=s", "postgres://h/db?schema=s"),
            ("mongodb://h1,h2/db?replicaSet=rs0", "mongodb://h1,h2/db"),
            ("file:/a/b?deadline=1s", "file:/a/b"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(label(url), wanted);
            assert_eq!(server(url).as_deref(), wanted.contains("://").then_some(wanted));
        }
        assert_eq!(server("redis://user:pa?db=ss@host"), None);
    }
}
