//! Work on many records, which must not block a thread of the runtime.

use std::time::Duration;

use tokio::{
    task::{spawn_blocking, yield_now},
    time::timeout,
};

use crate::{Error, ErrorKind, Result, layer::time_left};

/// Up to this number of records are read on the caller's thread, in less time than a disk access takes.
pub(super) const FEW: usize = 100;

/// Up to this size all records of a store are parsed on the caller's thread.
pub(super) const SMALL_STORE: u64 = 256 << 10;

/// Up to this size a document of a batch is parsed on the caller's thread.
pub(super) const SMALL_IN_BATCH: usize = 8 << 10;

/// Up to this size a document is parsed on the caller's thread.
pub(super) const SMALL_DOCUMENT: usize = 64 << 10;

/// Up to this number of values are encoded on the caller's thread: each may have 1 MiB.
pub(super) const FEW_VALUES: usize = 8;

/// Runs small work here, and other work on a thread for blocking work, within the deadline. The work must
/// change nothing.
pub(super) async fn work<T: Send + 'static>(
    deadline: Duration,
    is_small: bool,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if is_small {
        return work();
    }
    match timeout(time_left(deadline), spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => {
            Err(Error::new(ErrorKind::Internal, "work on many records panicked, or the runtime has ended"))
        }
        Err(_) => {
            let message = "the deadline passed while many records were read or encoded";
            Err(Error::new(ErrorKind::Timeout, message))
        }
    }
}

/// Copies the items. A long copy yields to other tasks between its pieces.
pub(super) async fn copied<T: Clone>(items: &[T]) -> Vec<T> {
    let mut copy = Vec::with_capacity(items.len());
    for (index, piece) in items.chunks(FEW).enumerate() {
        if index > 0 {
            yield_now().await;
        }
        copy.extend_from_slice(piece);
    }
    copy
}
