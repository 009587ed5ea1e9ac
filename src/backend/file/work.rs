//! Work on many records, which must not block a thread of the runtime.

use std::time::Duration;

use tokio::{
    task::{spawn_blocking, yield_now},
    time::{Instant, timeout},
};

use super::{File, state::Draft};
use crate::{Error, ErrorKind, Result, layer::time_left};

/// Up to this number of records are read on the caller's thread, in less time than a disk access takes.
pub(super) const FEW: usize = 1000;

/// Up to this number of values are encoded on the caller's thread: each may have 1 MiB.
const FEW_VALUES: usize = 8;

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

impl File {
    /// Encodes and writes, all within one deadline.
    pub(super) async fn encode_and_write<E: Send + 'static, T: Send + 'static>(
        &self,
        values: usize,
        encode: impl FnOnce() -> E + Send + 'static,
        change: impl FnOnce(&mut Draft, E) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let begun = Instant::now();
        let encoded = work(self.deadline, values <= FEW_VALUES, move || Ok(encode())).await?;
        let deadline = self.deadline.saturating_sub(begun.elapsed());
        Self { deadline, ..self.clone() }.write(move |draft| change(draft, encoded)).await
    }
}
