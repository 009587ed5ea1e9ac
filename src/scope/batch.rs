//! Batches in a scope.

use super::Scope;
use crate::{BatchFailure, Key, Result, layer::Report};

/// The items of a batch that fit into the scope, as they are stored, and the failures of the others.
pub(super) struct Batch<'b, T> {
    scope: &'b Scope,
    /// The items as the caller gave them.
    given: &'b [T],
    key: fn(&T) -> &Key,
    pub(super) items: Vec<T>,
    /// The index of each item among those given.
    indices: Vec<usize>,
    failures: Vec<BatchFailure>,
}

impl Scope {
    /// `key` is that of an item, and `rename` the item with another one.
    pub(super) fn batch<'b, T>(
        &'b self,
        given: &'b [T],
        key: fn(&T) -> &Key,
        rename: fn(&T, Key) -> T,
    ) -> Batch<'b, T> {
        let (mut items, mut indices, mut failures) =
            (Vec::with_capacity(given.len()), Vec::new(), Vec::new());
        for (index, item) in given.iter().enumerate() {
            match self.outer(key(item)) {
                Ok(outer) => {
                    items.push(rename(item, outer));
                    indices.push(index);
                }
                Err(error) => failures.push(BatchFailure::new(index, key(item), error.with_key(key(item)))),
            }
        }
        Batch { scope: self, given, key, items, indices, failures }
    }
}

impl<T> Batch<'_, T> {
    /// The result of the batch, from that of the items.
    pub(super) fn settle<R: Report>(self, result: Result<R>) -> Result<R> {
        let mut report = self.scope.result(result)?;
        let failures = report.failures();
        *failures = failures
            .drain(..)
            .filter_map(|failure| {
                let index = *self.indices.get(failure.index)?;
                Some(BatchFailure::new(
                    index,
                    (self.key)(&self.given[index]),
                    self.scope.error(failure.error),
                ))
            })
            .chain(self.failures)
            .collect();
        failures.sort_by_key(|failure| failure.index);
        report.spread(&self.indices, self.given.len());
        Ok(report)
    }
}
