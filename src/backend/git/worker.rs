//! The one thread that owns the repository, and the queue of what it is asked to do.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot, watch};

use super::{failure::unanswered, writer::Writer};
use crate::{
    Error, ErrorKind, Outcome, Result,
    backend::local::{Joined, Ticket},
};

/// How many calls may wait. Those that come later wait for a place, within their deadlines.
const QUEUE: usize = 4096;

/// How soon files are synced after the last write.
const TIDY_AFTER: Duration = Duration::from_millis(200);

/// How often answers of the remote are looked for while one is on its way.
const LOOK_AFTER: Duration = Duration::from_millis(20);

enum Message {
    Work(Box<dyn FnOnce(&mut Writer) + Send>),
    Close(oneshot::Sender<()>),
}

/// The thread's handle: the only way to change the store.
pub(super) struct Worker {
    queue: Sender<Message>,
    places: Arc<Semaphore>,
    /// Closes when the thread has released the store.
    released: watch::Receiver<()>,
    /// Tells the thread to wait for no remote any more.
    is_left: Arc<AtomicBool>,
    /// After the queue, whose end ends it.
    _thread: Joined,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.is_left.store(true, Ordering::Release);
    }
}

impl Worker {
    /// Starts the thread, which opens the store: a repository's index can't be given to another one. Gives what `look` sees.
    pub(super) fn start<T: Send + 'static>(
        open: impl FnOnce(Arc<AtomicBool>) -> Result<Writer> + Send + 'static,
        look: impl FnOnce(&Writer) -> T + Send + 'static,
    ) -> Result<(Self, T)> {
        let (queue, messages) = channel();
        let (opening, opened) = channel();
        let (releasing, released) = watch::channel(());
        let is_left = Arc::<AtomicBool>::default();
        let left = is_left.clone();
        let thread = thread::Builder::new()
            .name("gateway-storage-git".into())
            .spawn(move || {
                let writer = match catch_unwind(AssertUnwindSafe(|| open(left)))
                    .unwrap_or_else(|_| Err(abandoned()))
                {
                    Ok(writer) => writer,
                    // Whoever opens it waits for this.
                    Err(error) => return drop(opening.send(Err(error))),
                };
                drop(opening.send(Ok(look(&writer))));
                run(writer, &messages);
                drop(releasing);
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the writer's thread can't be started").with_source(error)
            })?;
        let seen = opened.recv().unwrap_or_else(|_| Err(abandoned()))?;
        let places = Arc::new(Semaphore::new(QUEUE));
        Ok((Self { queue, places, released, is_left, _thread: Joined::new(thread) }, seen))
    }

    /// Queues some work, and waits until it is done.
    ///
    /// Whoever stops waiting before it is begun, by the deadline or because the future is dropped, takes it back.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket::default();
        let begun = ticket.begun();
        let asked = async {
            let place = self.places.clone().acquire_owned().await;
            let job = Box::new(move |writer: &mut Writer| {
                if !begun.swap(true, Ordering::AcqRel) {
                    let result =
                        catch_unwind(AssertUnwindSafe(|| work(writer))).unwrap_or_else(|_| Err(abandoned()));
                    // If the caller is gone, what was done stays.
                    drop(reply.send(result));
                }
                drop(place);
            });
            // A queue without a receiver drops the job, and with it the sender of the answer.
            drop(self.queue.send(Message::Work(job)));
            answer.await
        };
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if ticket.take() => Err(Error::closed()),
            Ok(Err(_)) => Err(abandoned()),
            Err(_) if ticket.take() => Err(Error::new(
                ErrorKind::Timeout,
                "the call was still waiting for others when its deadline passed, and was withdrawn",
            )),
            Err(_) => Err(unanswered()),
        }
    }

    /// Finishes what is queued and releases the store. Returns once it is released, whoever closed it.
    pub(super) async fn close(&self, deadline: Duration) -> Result<()> {
        let closed = async {
            let (reply, answer) = oneshot::channel();
            if self.queue.send(Message::Close(reply)).is_ok() {
                drop(answer.await);
            }
            let mut released = self.released.clone();
            while released.changed().await.is_ok() {}
            Ok(())
        };
        tokio::time::timeout(deadline, closed).await.unwrap_or_else(|_| Err(unanswered()))
    }
}

#[cold]
fn abandoned() -> Error {
    Error::new(ErrorKind::Internal, "the writer died in the middle of a call").with_outcome(Outcome::Unknown)
}

fn run(mut writer: Writer, messages: &Receiver<Message>) {
    let mut closing = None;
    while closing.is_none() {
        let wait = match () {
            () if writer.is_expecting() => LOOK_AFTER,
            () if writer.is_untidy() => TIDY_AFTER,
            () => writer.next_sync().map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now()).max(LOOK_AFTER)
            }),
        };
        match messages.recv_timeout(wait) {
            Ok(Message::Work(job)) => job(&mut writer),
            Ok(Message::Close(reply)) => closing = Some(reply),
            Err(RecvTimeoutError::Timeout) => writer.tidy(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        writer.sync();
    }
    // What is queued is finished; what comes later finds nobody.
    while let Ok(message) = messages.try_recv() {
        if let Message::Work(job) = message {
            job(&mut writer);
        }
    }
    writer.finish(closing.is_some());
    if let Some(reply) = closing {
        // Whoever closed it may be gone.
        let _ = reply.send(());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::{Git, GitConfig, Open};

    #[tokio::test]
    async fn a_full_queue_is_waited_for_within_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::open(GitConfig::new(folder.path().join("store"))).await.unwrap();
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
            assert_eq!(worker.places.available_permits(), 0, "it waited outside of the queue");
            drop(go);
            ran
        };
        let (first, rest, error) = tokio::join!(first, rest, one_more);
        assert!(first.is_ok() && rest.iter().all(Result::is_ok));
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied));
        worker.ask(long, |_| Ok(())).await.expect("there are places again");
    }
}
