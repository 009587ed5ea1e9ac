//! Ctrl-C, where work should end in order.

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
use gateway_storage::{Call, Error, ErrorKind, Layer, Operation, Receiver, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tokio::time::sleep;

use crate::{
    aside,
    failure::{Exit, Failure},
    source::Source,
};

/// Whether somebody wants the work to end. The second time the process ends at once.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// How soon it is noticed where nothing else happens.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Interrupt {
    /// Listens, from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        if !is_to_outlive_its_terminal() {
            signals.add_signal(SIGHUP)?;
        }
        let first = interrupted.clone();
        thread::Builder::new().spawn(move || {
            for _ in signals.forever() {
                if first.swap(true, Ordering::Relaxed) {
                    aside::end(Exit::Interrupted as i32);
                }
            }
        })?;
        Ok(Self(interrupted))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    async fn comes(&self) {
        while !self.is_set() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Work that an interrupt gives up, where it stands: that of reaching a store, say.
    pub(crate) async fn unless<F: Future>(&self, work: F) -> std::result::Result<F::Output, Failure> {
        match select(pin!(work), pin!(self.comes())).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(Failure::interrupted()),
        }
    }

    /// Lets go of a source. A call that an interrupt gave up is not waited for: nothing is written there.
    pub(crate) async fn close(&self, source: Source) {
        let _ = self.unless(source.close()).await;
    }

    /// The same records, with an error in place of those that come after an interrupt.
    pub(crate) fn ends<T: Send>(
        &self,
        records: impl Stream<Item = Result<T>> + Send,
    ) -> impl Stream<Item = Result<T>> + Send {
        let (waiting, asked) = (self.clone(), self.clone());
        let interrupted = async move { waiting.comes().await };
        let ended = stream::once(future::ready(())).filter_map(move |()| {
            let error = asked.is_set().then(|| Error::new(ErrorKind::Unavailable, "interrupted"));
            future::ready(error.map(Err))
        });
        // A source that never waits lets no timer run.
        let seen = self.clone();
        let records = records.take_while(move |_| future::ready(!seen.is_set()));
        records.take_until(interrupted).chain(ended)
    }
}

/// `nohup` has it ignore that its terminal is gone, and so must we. Only Linux tells; elsewhere nobody listens to it.
fn is_to_outlive_its_terminal() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}

/// As a layer it ends what a store gives: much of a target can be read before the next record of the source is.
impl Layer for Interrupt {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        call.run(on).await
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        _: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        self.ends(items)
    }
}

#[cfg(test)]
mod tests {
    use gateway_storage::{Key, Memory, Record, Storage};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_source_that_never_waits_is_ended() {
        let interrupt = Interrupt(Arc::default());
        let record = Record::Config { key: Key::new("k").unwrap(), value: json!(1).try_into().unwrap() };
        let endless = stream::repeat_with(|| Ok(record.clone()));
        let third = interrupt.clone();
        let mut given = 0;
        let seen: Vec<_> = interrupt
            .ends(endless.inspect(move |_| {
                given += 1;
                third.0.store(given == 3, Ordering::Relaxed);
            }))
            .collect()
            .await;
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[2].as_ref().unwrap_err().to_string(), "interrupted");
    }

    #[tokio::test]
    async fn a_target_that_is_read_is_ended_and_can_be_written() {
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
