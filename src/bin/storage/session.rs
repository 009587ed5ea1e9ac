//! How a command opens and closes its store.

use std::{cell::OnceCell, time::Instant};

use gateway_storage::{ErrorKind, Storage, layer::Layered};

use crate::{
    backend::CliBackend,
    term::{failure::Failure, log::Log, output::say},
};

/// A store that the command opens after it has checked its arguments.
pub(crate) struct Session<'u, B> {
    pub(crate) url: &'u str,
    pub(crate) log: Log,
    storage: OnceCell<Storage<Layered<Log, B>>>,
}

impl<'u, B: CliBackend> Session<'u, B> {
    pub(crate) fn new(url: &'u str, log: Log) -> Self {
        Self { url, log, storage: OnceCell::new() }
    }

    /// Opens an existing store, so that a mistyped path is an error and not a new store.
    pub(crate) async fn open(&self) -> Result<&Storage<Layered<Log, B>>, Failure> {
        self.open_with(B::existing).await
    }

    /// Opens a store, and creates it if it does not exist.
    pub(crate) async fn create(&self) -> Result<&Storage<Layered<Log, B>>, Failure> {
        self.open_with(|options| options).await
    }

    /// The options in the URL.
    pub(crate) fn options(&self) -> Result<B::Options, Failure> {
        B::Options::try_from(self.url).map_err(|error| Failure::invalid(&error))
    }

    /// Opens an existing store for a command that only reads. A store that can't be written, or not while
    /// another program has it open, is opened read-only.
    pub(crate) async fn read(&self) -> Result<&Storage<Layered<Log, B>>, Failure> {
        let storage = self.read_owned().await?;
        Ok(self.storage.get_or_init(|| storage))
    }

    /// As [`read`](Self::read), for a caller that closes the store itself.
    pub(crate) async fn read_owned(&self) -> Result<Storage<Layered<Log, B>>, Failure> {
        let refusals = [ErrorKind::Denied.as_str(), ErrorKind::Busy.as_str()];
        let refused = match self.opened(B::existing(self.options()?)).await {
            Err(failure) if refusals.contains(&failure.kind) => failure,
            opened => return opened,
        };
        for options in B::to_read(self.options()?) {
            if let Ok(storage) = self.opened(options).await {
                return Ok(storage);
            }
        }
        // Why the store can't be written says more than why it can't be read.
        Err(refused)
    }

    /// Opens the store with changed options.
    pub(crate) async fn open_with(
        &self,
        adjust: fn(B::Options) -> B::Options,
    ) -> Result<&Storage<Layered<Log, B>>, Failure> {
        let storage = self.opened(adjust(self.options()?)).await?;
        Ok(self.storage.get_or_init(|| storage))
    }

    async fn opened(&self, options: B::Options) -> Result<Storage<Layered<Log, B>>, Failure> {
        let start = Instant::now();
        let opened = Storage::<B>::open(B::adjusted(options)).await;
        let storage = opened.map_err(|error| Failure::opening(self.url, &error))?;
        self.log.line(format_args!("open: ok in {:.1?}", start.elapsed()));
        Ok(storage.layer(self.log))
    }

    /// Closes the store if it was opened.
    pub(crate) async fn close(self) {
        if let Some(storage) = self.storage.into_inner() {
            let closed = storage.backend().inner().clone();
            // Acknowledged writes are durable already. An error here must not make the operator repeat them;
            // `-v` logs it.
            let _ = storage.close().await;
            if let Some(line) = closed.warning_after_close() {
                say(&format!("warning: {line}"));
            }
        }
    }
}
