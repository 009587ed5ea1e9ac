//! Chunks of a batch that are transactions, in smaller parts after a conflict.

use futures_util::{StreamExt, stream};

use super::{CONCURRENT_CHUNKS, server::Call};
use crate::{Error, ErrorKind, Outcome, Result, backend::remote::Backoff};

/// Runs a chunk by `together`, in one transaction. After a conflict, or an error that `splits` it, the chunk
/// is halved. Single items are run by `one`, without a transaction: last and concurrently, because each may
/// wait for the transaction of another caller.
pub(super) async fn run<'c, T, R, A, B>(
    call: &Call<'_>,
    chunk: &'c [T],
    splits: fn(&Error) -> bool,
    one: impl Fn(&'c T) -> A,
    together: impl Fn(&'c [T]) -> B,
) -> Vec<(&'c [T], Result<R>)>
where
    A: Future<Output = Result<R>>,
    B: Future<Output = Result<R>>,
{
    let (mut results, mut parts, mut singles) = (Vec::new(), vec![chunk], Vec::new());
    let mut backoff = Backoff::until(call.deadline);
    while let Some(part) = parts.pop() {
        if let [item] = part {
            let single = one(item);
            singles.push(async move { (part, single.await) });
            continue;
        }
        let result = together(part).await;
        let is_halved = match &result {
            Err(error) if error.outcome() == Outcome::Unknown => false,
            Err(error) if error.kind() == ErrorKind::Conflict => backoff.pause().await,
            Err(error) => splits(error),
            Ok(_) => false,
        };
        if is_halved {
            let (left, right) = part.split_at(part.len() / 2);
            parts.extend([right, left]);
        } else {
            results.push((part, result));
        }
    }
    let singles = stream::iter(singles).buffer_unordered(CONCURRENT_CHUNKS);
    results.extend(singles.collect::<Vec<_>>().await);
    results
}
