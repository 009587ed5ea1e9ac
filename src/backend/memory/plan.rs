//! Plans and their audit.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_core::Stream;
// Tokio's clock, so that an application's test can pause it.
use tokio::time::Instant;

use super::{Data, Memory};
use crate::{
    Backend, ConfigBatch, ConfigValue, Key, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, rollback_step},
        snapshot::stream_of,
    },
    codec::{PlanRecord, to_millis},
    history::DocumentKind,
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, MAX_AUDIT_ENTRIES, Plan, PlanRefusal,
        Rollback, RollbackOptions,
    },
};

#[derive(Default)]
pub(super) struct Plans {
    records: BTreeMap<Key, StoredPlan>,
    /// Oldest first.
    audit: VecDeque<AuditEntry>,
}

struct StoredPlan {
    record: PlanRecord,
    expires: Instant,
}

impl Plans {
    fn remove_expired(&mut self) {
        let now = Instant::now();
        self.records.retain(|_, plan| now < plan.expires);
    }

    fn log(&mut self, attempt: &Attempt<'_>, status: AuditStatus, error: Option<PlanRefusal>) -> Result<()> {
        self.audit.push_back(attempt.entry(status, error, SystemTime::now())?);
        if self.audit.len() > MAX_AUDIT_ENTRIES {
            self.audit.pop_front();
        }
        Ok(())
    }
}

impl Data {
    fn put_config(&mut self, key: &Key, value: Option<&ConfigValue>) {
        match value {
            Some(value) => drop(self.configs.insert(key.clone(), value.clone())),
            None => drop(self.configs.remove(key)),
        }
    }
}

impl ConfigBatch for Memory {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let payload = plan.payload_hash();
        let attempt = Attempt::to_apply(self.label(), key, plan, payload, options);
        self.lock(|store| {
            store.plans.remove_expired();
            let known = store.plans.records.get(key).map(|plan| &plan.record);
            let stored = |key: &Key| store.data.configs.get(key).cloned();
            let step = apply_step(plan, payload, known, stored);
            let (status, error, result) = step.end();
            store.plans.log(&attempt, status, error)?;
            if let ApplyStep::Change(changes) = step {
                let data = store.changed();
                for change in &changes {
                    data.put_config(&change.key, change.after.as_ref());
                }
                self.tell(DocumentKind::Config, changes.iter().map(|change| &change.key));
                let applied = to_millis(SystemTime::now());
                let record = PlanRecord {
                    payload,
                    mutations: plan.len(),
                    stage: options.stage.clone(),
                    applied,
                    expires: applied.saturating_add_unsigned(ttl),
                    is_rolled_back: false,
                    changes,
                };
                let expires = Instant::now() + Duration::from_millis(ttl);
                store.plans.records.insert(key.clone(), StoredPlan { record, expires });
            }
            result
        })
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let attempt = Attempt::to_roll_back(self.label(), key, options);
        self.lock(|store| {
            store.plans.remove_expired();
            let record = store.plans.records.get(key).map(|plan| plan.record.clone());
            let stored = |key: &Key| store.data.configs.get(key).cloned();
            let step = rollback_step(record.as_ref(), options.force, stored);
            if let (RollbackStep::Restore, Some(plan)) = (&step, store.plans.records.get_mut(key)) {
                let data = Arc::make_mut(&mut store.data);
                for change in &plan.record.changes {
                    data.put_config(&change.key, change.before.as_ref());
                }
                self.tell(DocumentKind::Config, plan.record.changes.iter().map(|change| &change.key));
                plan.record.is_rolled_back = true;
            }
            let (status, error, result) = step.end();
            let attempt = attempt.about(record.as_ref());
            store.plans.log(&attempt, status, error)?;
            result
        })
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let entries = self.lock(|store| {
            let wanted = store.plans.audit.iter().rev().filter(|entry| filter.wants(entry));
            Ok(wanted.take(filter.limit.unwrap_or(usize::MAX)).cloned().collect::<Vec<_>>())
        });
        stream_of(entries.map(|entries| entries.into_iter().map(Ok)))
    }
}
