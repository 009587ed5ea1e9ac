//! What backends share that have a thread of their own for writing: who waits for it, and for how long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Who may still decide about some work: the caller takes it back, or the thread begins with it.
#[derive(Default)]
pub(super) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// The mark that whoever begins sets.
    pub(super) fn begun(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// Whether the work was not begun, and never will be.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.take();
    }
}

/// A thread that is waited for when this is dropped.
pub(super) struct Joined(Option<JoinHandle<()>>);

impl Joined {
    pub(super) const fn new(thread: JoinHandle<()>) -> Self {
        Self(Some(thread))
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // The last handle may be in a future that the thread's own answer drops: a thread can't wait for itself.
        if let Some(thread) = self.0.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            // It has caught its own panics, and answered for them.
            drop(thread.join());
        }
    }
}
