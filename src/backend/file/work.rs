//! Where work on many records is done: not on a thread of the runtime, which has others to serve.

use std::time::Duration;

use tokio::{
    task::{spawn_blocking, yield_now},
    time::{Instant, timeout},
};

use super::{File, state::Draft};
use crate::{Error, ErrorKind, Result, layer::time_left};

/// This many records are read in less time than it takes to wait for a disk. More of them go to a thread of their own.
pub(super) const FEW: usize = 1000;

/// This many values are encoded by the caller: one may have a megabyte.
const FEW_VALUES: usize = 8;

/// Does work that is small here, and other work on a thread for what blocks, within the deadline. It changes nothing.
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
        Ok(Err(_)) => Err(Error::new(
            ErrorKind::Internal,
            "work on many records panicked, or the runtime that it was for has ended",
        )),
        Err(_) => {
            let message = "the deadline passed while many records were read or encoded";
            Err(Error::new(ErrorKind::Timeout, message))
        }
    }
}

/// A copy of what the caller lends. Between the pieces of a long one others have their turn.
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
    /// Encodes what is to be written, and writes it, all within one deadline.
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
