//! The thread that owns the repository, and its queue.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot, watch};

use super::{error::unanswered, writer::Writer};
use crate::{
    Error, ErrorKind, Outcome, Result,
    backend::local::thread::{Joined, Ticket},
};

/// Calls that may wait in the queue. More wait for a slot, within their deadlines.
const QUEUE: usize = 4096;

/// How long after the last write files are synced.
const SYNC_AFTER: Duration = Duration::from_millis(200);

/// How often the thread checks for a pending answer of the remote.
const CHECK_EVERY: Duration = Duration::from_millis(20);

enum Message {
    Work(Box<dyn FnOnce(&mut Writer) + Send>),
    Close,
}

/// A way to the thread for a watch, which does not keep the store open.
#[derive(Clone)]
pub(super) struct Line(Weak<Sender<Message>>);

impl Line {
    /// Queues some work, and does not wait for it.
    pub(super) fn send(&self, work: impl FnOnce(&mut Writer) + Send + 'static) -> Result<()> {
        let queue = self.0.upgrade().ok_or_else(Error::closed)?;
        let job = move |writer: &mut Writer| drop(catch_unwind(AssertUnwindSafe(|| work(writer))));
        queue.send(Message::Work(Box::new(job))).map_err(|_| Error::closed())
    }
}

/// The handle of the thread: the only way to change the store.
pub(super) struct Worker {
    queue: Arc<Sender<Message>>,
    slots: Arc<Semaphore>,
    /// Closes when the thread has released the store.
    released: watch::Receiver<()>,
    /// Set to make the thread stop waiting for the remote.
    is_dropped: Arc<AtomicBool>,
    /// Declared after the queue, because the thread ends with it.
    _thread: Joined,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Release);
    }
}

impl Worker {
    /// Starts the thread, which opens the store: git2's `Index` can't move to another thread. Returns what
    /// `open` returns beside the writer.
    pub(super) fn start<T: Send + 'static>(
        open: impl FnOnce(Arc<AtomicBool>) -> Result<(Writer, T)> + Send + 'static,
    ) -> Result<(Self, T)> {
        let (queue, messages) = channel();
        let (opening, opened) = channel();
        let (releasing, released) = watch::channel(());
        let is_dropped = Arc::<AtomicBool>::default();
        let dropped = is_dropped.clone();
        let thread = thread::Builder::new()
            .name("gateway-storage-git".into())
            .spawn(move || {
                let (writer, seen) = match open(dropped) {
                    Ok(opened) => opened,
                    // The opener waits for this.
                    Err(error) => return drop(opening.send(Err(error))),
                };
                drop(opening.send(Ok(seen)));
                run(writer, &messages);
                drop(releasing);
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the writer's thread can't be started").with_source(error)
            })?;
        let seen = opened.recv().unwrap_or_else(|_| Err(panicked()))?;
        let slots = Arc::new(Semaphore::new(QUEUE));
        let queue = Arc::new(queue);
        Ok((Self { queue, slots, released, is_dropped, _thread: Joined::new(thread) }, seen))
    }

    pub(super) fn line(&self) -> Line {
        Line(Arc::downgrade(&self.queue))
    }

    /// Queues some work and waits for its result.
    ///
    /// A caller that stops waiting before the work has begun, by the deadline or by dropping the future,
    /// withdraws it.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket::default();
        let begun = ticket.begun();
        let asked = async {
            let slot = self.slots.clone().acquire_owned().await;
            let job = Box::new(move |writer: &mut Writer| {
                if !begun.swap(true, Ordering::AcqRel) {
                    let result =
                        catch_unwind(AssertUnwindSafe(|| work(writer))).unwrap_or_else(|_| Err(panicked()));
                    // The work stays done even if the caller no longer waits.
                    drop(reply.send(result));
                }
                drop(slot);
            });
            // Without a receiver the queue drops the job, and with it the sender of the answer.
            drop(self.queue.send(Message::Work(job)));
            answer.await
        };
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if ticket.take() => Err(Error::closed()),
            Ok(Err(_)) => Err(panicked()),
            Err(_) if ticket.take() => Err(Error::new(
                ErrorKind::Timeout,
                "the deadline passed while the call was queued; it was withdrawn",
            )),
            Err(_) => Err(unanswered()),
        }
    }

    /// Finishes the queue and releases the store. Returns once it is released, also if another caller closed
    /// it.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        // The queue has no receiver if another call has closed the store.
        drop(self.queue.send(Message::Close));
        let mut released = self.released.clone();
        let closed = async {
            while released.changed().await.is_ok() {}
            Ok(())
        };
        tokio::time::timeout(deadline, closed).await.unwrap_or_else(|_| Err(unanswered()))
    }
}

#[cold]
fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "the writer panicked during a call").with_outcome(Outcome::Unknown)
}

fn run(mut writer: Writer, messages: &Receiver<Message>) {
    let mut is_closing = false;
    while !is_closing {
        let wait = match () {
            () if writer.is_pending() => CHECK_EVERY,
            () if writer.local.has_unsynced() => SYNC_AFTER,
            () => writer.next_sync().map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now()).max(CHECK_EVERY)
            }),
        };
        match messages.recv_timeout(wait) {
            Ok(Message::Work(job)) => job(&mut writer),
            Ok(Message::Close) => is_closing = true,
            Err(RecvTimeoutError::Timeout) => writer.local.sync_files(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        writer.run_due();
    }
    // Queued work is finished; later calls find the queue closed.
    while let Ok(message) = messages.try_recv() {
        if let Message::Work(job) = message {
            job(&mut writer);
        }
    }
    writer.finish(is_closing);
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::{Git, GitOptions, Open};

    #[tokio::test]
    async fn a_call_waits_for_a_slot_within_its_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let git = Git::open(GitOptions::new(directory.path().join("store"))).await.unwrap();
        let worker = &git.store.worker;
        let (go, wait) = channel::<()>();
        let long = Duration::from_secs(60);
        let first = worker.ask(long, move |_| {
            wait.recv_timeout(long).ok();
            Ok(())
        });
        let rest = join_all((1..QUEUE).map(|_| worker.ask(long, |_| Ok(()))));
        let one_more = async {
            let ran = worker.ask(Duration::from_millis(50), |_| Ok(())).await.unwrap_err();
            assert_eq!(worker.slots.available_permits(), 0, "the call waited for a slot");
            drop(go);
            ran
        };
        let (first, rest, error) = tokio::join!(first, rest, one_more);
        assert!(first.is_ok() && rest.iter().all(Result::is_ok));
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        worker.ask(long, |_| Ok(())).await.expect("slots are free again");
    }
}
