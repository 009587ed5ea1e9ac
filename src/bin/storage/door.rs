//! How a command comes to its store.

use std::{cell::OnceCell, time::Instant};

use gateway_storage::{ErrorKind, Layered, Storage};

use crate::{backends::Operated, failure::Failure, log::Log, output::say};

/// A store that is not open yet. A command opens it after it has checked everything it was given.
pub(crate) struct Door<'u, B> {
    url: &'u str,
    log: Log,
    inside: OnceCell<Storage<Layered<Log, B>>>,
}

impl<'u, B: Operated> Door<'u, B> {
    pub(crate) fn new(url: &'u str, log: Log) -> Self {
        Self { url, log, inside: OnceCell::new() }
    }

    /// Opens a store that exists. A mistyped path is an error then, and not a new, empty store.
    pub(crate) async fn open(&self) -> Result<&Storage<Layered<Log, B>>, Failure> {
        self.enter(B::existing).await
    }

    /// Opens a store, and makes it if there is none.
    pub(crate) async fn create(&self) -> Result<&Storage<Layered<Log, B>>, Failure> {
        self.enter(|config| config).await
    }

    /// What the URL says.
    pub(crate) fn config(&self) -> Result<B::Config, Failure> {
        B::Config::try_from(self.url).map_err(|error| Failure::url(&error))
    }

    /// Opens a store that exists, for a command that only reads: where it can't be opened to write, it is opened to read.
    pub(crate) async fn read(&self) -> Result<&Storage<Layered<Log, B>>, Failure> {
        let storage = self.read_apart().await?;
        Ok(self.inside.get_or_init(|| storage))
    }

    /// The same, for a caller that closes it.
    pub(crate) async fn read_apart(&self) -> Result<Storage<Layered<Log, B>>, Failure> {
        let refused = match self.opened(B::existing).await {
            Err(failure) if failure.kind == ErrorKind::Denied.as_str() => failure,
            opened => return opened,
        };
        match B::to_read(self.config()?) {
            // What stands in the way of writing is what there is to say.
            Some(_) => {
                self.opened(|config| B::to_read(config).expect("it was there")).await.map_err(|_| refused)
            }
            None => Err(refused),
        }
    }

    /// What tells of the work.
    pub(crate) const fn log(&self) -> Log {
        self.log
    }

    /// The URL.
    pub(crate) const fn url(&self) -> &str {
        self.url
    }

    /// Opens a store with another configuration than the URL's.
    pub(crate) async fn enter(
        &self,
        adjust: fn(B::Config) -> B::Config,
    ) -> Result<&Storage<Layered<Log, B>>, Failure> {
        let storage = self.opened(adjust).await?;
        Ok(self.inside.get_or_init(|| storage))
    }

    async fn opened(&self, adjust: fn(B::Config) -> B::Config) -> Result<Storage<Layered<Log, B>>, Failure> {
        let config = self.config()?;
        let start = Instant::now();
        let storage =
            Storage::<B>::open(adjust(config)).await.map_err(|error| Failure::opening(self.url, &error))?;
        self.log.line(format_args!("open: ok in {:.1?}", start.elapsed()));
        Ok(storage.layer(self.log))
    }

    /// Closes the store, if it was opened.
    pub(crate) async fn close(self) {
        if let Some(storage) = self.inside.into_inner() {
            let closed = storage.backend().inner().clone();
            // What was answered is durable already. An error here must not make anyone repeat it; `-v` shows it.
            let _ = storage.close().await;
            if let Some(line) = closed.afterwards() {
                say(&format!("warning: {line}"));
            }
        }
    }
}
