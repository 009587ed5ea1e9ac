//! For backends that write on a thread of their own: cancels queued work, and joins the thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Decides a race between caller and thread: either the caller takes the work back, or the thread begins it.
#[derive(Default)]
pub(crate) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// The flag that the thread sets when it begins.
    pub(crate) fn begun(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// Takes the work back. Returns false if the thread has begun it.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.take();
    }
}

/// A thread that is joined on drop.
pub(crate) struct Joined(Option<JoinHandle<()>>);

impl Joined {
    pub(crate) const fn new(thread: JoinHandle<()>) -> Self {
        Self(Some(thread))
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // The thread's own answer can drop the last handle, and a thread can't join itself.
        if let Some(thread) = self.0.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            // The thread catches and reports its own panics.
            drop(thread.join());
        }
    }
}
