//! Ctrl-C in commands that must stop cleanly.

use std::{
    fs, future, io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
    stream,
};
use gateway_storage::{
    Error, ErrorKind, Result,
    layer::{Call, Layer, Operation, Receiver},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::sleep,
};

use super::failure::{Exit, Failure};
use crate::atomic_file;

/// Set by the first signal. The second ends the process at once.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// How often a waiting command checks for it.
const CHECK_EVERY: Duration = Duration::from_millis(100);

impl Interrupt {
    /// Starts to listen.
    pub(crate) fn listen() -> std::result::Result<Self, Failure> {
        Self::on_signals().map_err(|error| Failure::system("can't listen for signals", &error))
    }

    fn on_signals() -> io::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let mut signals = ending_signals()?;
        let first = interrupted.clone();
        thread::Builder::new().spawn(move || {
            for _ in signals.forever() {
                if first.swap(true, Ordering::Relaxed) {
                    atomic_file::end(Exit::Interrupted as i32);
                }
            }
        })?;
        Ok(Self(interrupted))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) async fn wait(&self) {
        while !self.is_set() {
            sleep(CHECK_EVERY).await;
        }
    }

    /// Runs work that an interrupt drops, such as connecting to a store.
    pub(crate) async fn unless<F: Future>(&self, work: F) -> std::result::Result<F::Output, Failure> {
        match select(pin!(work), pin!(self.wait())).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(Failure::interrupted()),
        }
    }

    /// Ends a stream of records with an error after an interrupt.
    pub(crate) fn interruptible<T: Send>(
        &self,
        records: impl Stream<Item = Result<T>> + Send,
    ) -> impl Stream<Item = Result<T>> + Send {
        let (waiting, flag) = (self.clone(), self.clone());
        let interrupted = async move { waiting.wait().await };
        let ended = stream::once(future::ready(())).filter_map(move |()| {
            let error = flag.is_set().then(|| Error::new(ErrorKind::Unavailable, "interrupted"));
            future::ready(error.map(Err))
        });
        // A source that never waits gives the timer no time to run.
        let seen = self.clone();
        let records = records.take_while(move |_| future::ready(!seen.is_set()));
        records.take_until(interrupted).chain(ended)
    }
}

/// The signals that would end this process, for a command that passes them on to another.
pub(crate) fn received() -> std::result::Result<UnboundedReceiver<i32>, Failure> {
    let listen = || {
        let mut signals = ending_signals()?;
        let (received, receiver) = unbounded_channel();
        thread::Builder::new()
            .spawn(move || signals.forever().all(|signal| received.send(signal).is_ok()))?;
        Ok(receiver)
    };
    listen().map_err(|error| Failure::system("can't listen for signals", &error))
}

fn ending_signals() -> io::Result<Signals> {
    let signals = Signals::new([SIGINT, SIGTERM])?;
    if !ignores_hangup() {
        signals.add_signal(SIGHUP)?;
    }
    Ok(signals)
}

/// Whether the process was started to ignore SIGHUP, as `nohup` does. Only Linux reports it; elsewhere SIGHUP
/// is not handled.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}

/// As a layer it ends the streams of a store: a copy can read much of the target before the next record of
/// the source.
impl Layer for Interrupt {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        call.run(on).await
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        _: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        self.interruptible(items)
    }
}

#[cfg(test)]
mod tests {
    use gateway_storage::{Key, Record};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_source_that_never_waits_is_interrupted() {
        let interrupt = Interrupt(Arc::default());
        let record = Record::Config { key: Key::new("k").unwrap(), value: json!(1).try_into().unwrap() };
        let endless = stream::repeat_with(|| Ok(record.clone()));
        let third = interrupt.clone();
        let mut given = 0;
        let seen: Vec<_> = interrupt
            .interruptible(endless.inspect(move |_| {
                given += 1;
                third.0.store(given == 3, Ordering::Relaxed);
            }))
            .collect()
            .await;
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[2].as_ref().unwrap_err().to_string(), "interrupted");
    }

    #[cfg(feature = "memory")]
    #[tokio::test]
    async fn an_interrupt_ends_reads_of_the_target_and_allows_writes() {
        use gateway_storage::{Memory, Storage};

        let interrupt = Interrupt(Arc::default());
        let storage = Storage::<Memory>::open("memory:").await.unwrap().layer(interrupt.clone());
        storage.set_config("a", json!(1)).await.unwrap();
        assert!(storage.export().all(|record| future::ready(record.is_ok())).await);
        interrupt.0.store(true, Ordering::Relaxed);
        storage.set_config("b", json!(1)).await.unwrap();
        let seen: Vec<_> = storage.export().collect().await;
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].as_ref().unwrap_err().to_string(), "interrupted");
    }
}
