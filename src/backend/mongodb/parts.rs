//! Chunks of a batch that are transactions, in smaller parts after a conflict.

use std::collections::VecDeque;

use super::server::Call;
use crate::{Error, ErrorKind, Outcome, Result, backend::remote::Backoff};

/// Runs a chunk by `together`, in one transaction. After a conflict, or an error that `splits` it, the chunk is
/// halved. A part of a single item is run by `one`, without a transaction. It may wait for another transaction,
/// so larger parts go first.
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
    let (mut results, mut parts) = (Vec::new(), VecDeque::from([chunk]));
    let mut backoff = Backoff::until(call.deadline);
    while let Some(part) = parts.pop_front() {
        if let [item] = part {
            results.push((part, one(item).await));
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
            parts.extend([left, right]);
        } else {
            results.push((part, result));
        }
    }
    results
}
