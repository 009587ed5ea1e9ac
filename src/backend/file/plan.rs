//! Plans: their records and audit are in the commit that changes the configuration.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_core::Stream;

use super::{
    File,
    state::{Draft, State},
};
use crate::{
    Backend, ConfigBatch, ConfigValue, Key, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, rollback_step},
        snapshot::stream_of,
    },
    codec::{PlanRecord, RecordKey, encode_config, to_millis},
    plan::{Applied, ApplyOptions, AuditEntry, AuditFilter, PayloadHash, Plan, Rollback, RollbackOptions},
};

fn put(draft: &mut Draft, key: &Key, value: Option<&ConfigValue>) {
    match value {
        Some(value) => draft.put_config(key.clone(), value.clone(), encode_config(value)),
        // The value may be missing.
        None => drop(draft.delete_config(key)),
    }
}

/// Fails if one of these config values is damaged, because its expectation can't be checked.
fn check<'k>(state: &State, keys: impl Iterator<Item = &'k Key> + Clone) -> Result<()> {
    state.check(|name| matches!(name, RecordKey::Config(damaged) if keys.clone().any(|key| key == damaged)))
}

/// The arguments of the call.
struct ApplyCall {
    backend: &'static str,
    begun: Instant,
    key: Key,
    plan: Plan,
    options: ApplyOptions,
    ttl: u64,
}

fn apply(draft: &mut Draft, call: &ApplyCall, payload: PayloadHash) -> Result<Applied> {
    let ApplyCall { backend, begun, key, plan, options, ttl } = call;
    let attempt = Attempt { begun: *begun, ..Attempt::to_apply(backend, key, plan, payload, options) };
    let now = SystemTime::now();
    let applied = to_millis(now);
    draft.remove_expired_plans(applied);
    let state = draft.state();
    let record = state.plan(key)?.map(|record| &**record);
    check(state, plan.mutations().iter().map(|mutation| &mutation.key))?;
    let step = apply_step(plan, payload, record, |key| state.configs.get(key).cloned());
    let (status, error, result) = step.end();
    let entry = attempt.entry(status, error, now)?;
    if let ApplyStep::Change(changes) = step {
        for change in &changes {
            put(draft, &change.key, change.after.as_ref());
        }
        let record = PlanRecord {
            payload,
            mutations: plan.len(),
            stage: options.stage.clone(),
            applied,
            expires: applied.saturating_add_unsigned(*ttl),
            is_rolled_back: false,
            changes,
        };
        draft.put_plan(key.clone(), record);
    }
    draft.put_audit(entry);
    result
}

fn roll_back(
    draft: &mut Draft,
    key: &Key,
    options: &RollbackOptions,
    attempt: Attempt<'_>,
) -> Result<Rollback> {
    let now = SystemTime::now();
    draft.remove_expired_plans(to_millis(now));
    let state = draft.state();
    let record: Option<Arc<PlanRecord>> = state.plan(key)?.cloned();
    check(state, record.iter().flat_map(|record| &record.changes).map(|change| &change.key))?;
    let step = rollback_step(record.as_deref(), options.force, |key| state.configs.get(key).cloned());
    if let (RollbackStep::Restore, Some(record)) = (&step, &record) {
        for change in &record.changes {
            put(draft, &change.key, change.before.as_ref());
        }
        draft.put_plan(key.clone(), PlanRecord { is_rolled_back: true, ..PlanRecord::clone(record) });
    }
    let attempt = attempt.about(record.as_deref());
    let (status, error, result) = step.end();
    draft.put_audit(attempt.entry(status, error, now)?);
    result
}

impl ConfigBatch for File {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let call = ApplyCall {
            ttl: options.check()?,
            backend: self.label(),
            begun: Instant::now(),
            key: key.clone(),
            plan: plan.clone(),
            options: options.clone(),
        };
        let plan = plan.clone();
        let change = move |draft: &mut Draft, payload| apply(draft, &call, payload);
        self.encode_and_write(plan.len(), move || plan.payload_hash(), change).await
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let (key, options, backend) = (key.clone(), options.clone(), self.label());
        let begun = Instant::now();
        self.write(move |draft| {
            let attempt = Attempt { begun, ..Attempt::to_roll_back(backend, &key, &options) };
            roll_back(draft, &key, &options, attempt)
        })
        .await
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        stream_of(self.state().map(|state| {
            let limit = filter.limit.unwrap_or(usize::MAX);
            let entries = state.audit.clone();
            let numbers: Vec<u64> = entries.keys().rev().copied().collect();
            let wanted = numbers
                .into_iter()
                .filter_map(move |number| entries.get(&number).cloned())
                .filter(move |entry| filter.wants(entry));
            let damage = state.check(|name| matches!(name, RecordKey::Audit(_))).err();
            wanted.map(|entry| Ok(AuditEntry::clone(&entry))).chain(damage.map(Err)).take(limit)
        }))
    }
}
