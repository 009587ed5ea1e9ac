//! Plans in a scope. The backend gets and keeps the plan's hash in the namespace of the scope, and the audit
//! of the scope shows the plan's own.

use std::future::ready;

use futures_core::Stream;
use futures_util::StreamExt;

use super::Scope;
use crate::{
    ConfigBatch, Key, Result,
    plan::{Applied, ApplyOptions, AuditEntry, AuditFilter, Plan, Rollback, RollbackOptions},
    wrap::ConfigBatchWrapper,
};

#[deny(clippy::missing_trait_methods)]
impl<B: ConfigBatch> ConfigBatchWrapper<B> for Scope {
    async fn apply_plan(&self, inner: &B, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let (key, plan) = (self.outer(key)?, plan.with_keys(&self.prefix, |key| self.outer(key))?);
        self.result(inner.apply_plan(&key, &plan, options).await)
    }

    async fn rollback_plan(&self, inner: &B, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        Ok(match self.result(inner.rollback_plan(&self.outer(key)?, options).await)? {
            Rollback::Refused { changed } => {
                Rollback::Refused { changed: changed.iter().filter_map(|key| self.inner(key)).collect() }
            }
            done @ (Rollback::RolledBack | Rollback::AlreadyRolledBack) => done,
        })
    }

    fn audit_plans(&self, inner: &B, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let limit = filter.limit.unwrap_or(usize::MAX);
        // A key that is too long for the scope has no entry, as it has none without a filter.
        let outer = AuditFilter { key: None, limit: None, ..filter.clone() };
        let outer = match filter.key.as_ref().map(|key| self.outer(key)) {
            Some(Ok(key)) => outer.with_key(&key),
            Some(Err(_)) | None => outer,
        };
        let own = inner.audit_plans(outer).filter_map(move |entry| {
            ready(match entry {
                Ok(entry) => self.inner(&entry.key).and_then(|key| {
                    let payload_hash = entry.payload_hash.map(|hash| hash.in_namespace(&self.prefix));
                    let entry = AuditEntry { key, payload_hash, ..entry };
                    filter.wants(&entry).then_some(Ok(entry))
                }),
                Err(error) => Some(Err(self.error(error))),
            })
        });
        own.take(limit)
    }
}
