//! Plans: their records and audit are in the commit that changes the configuration.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use futures_core::Stream;
use futures_util::{StreamExt, stream};

use super::{
    File, LABEL, cache::weight_of, document::Document, draft::Draft, snapshot::Snapshot, work::work,
};
use crate::{
    Backend, ConfigBatch, ConfigValue, ErrorKind, Key, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, rollback_step},
        snapshot::stream_of,
    },
    codec::{PlanRecord, RecordKey, decode_audit, encode_config, to_millis},
    plan::{Applied, ApplyOptions, AuditEntry, AuditFilter, PayloadHash, Plan, Rollback, RollbackOptions},
};

fn put(draft: &mut Draft<'_>, key: &Key, value: Option<&ConfigValue>) -> Result<()> {
    match value {
        Some(value) => draft.put_config(key.clone(), &encode_config(value)),
        // The value may be missing.
        None => draft.delete_config(key).or_else(|error| match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }),
    }
}

/// The config values of these keys. Fails if one is damaged, because its expectation can't be checked.
fn values<'k>(
    draft: &mut Draft<'_>,
    keys: impl Iterator<Item = &'k Key>,
) -> Result<BTreeMap<Key, ConfigValue>> {
    let mut values = BTreeMap::new();
    for key in keys {
        let value = draft.get(&RecordKey::Config(key.clone()), ConfigValue::decode);
        if let Some(value) = value.map_err(|error| error.with_key(key))? {
            values.insert(key.clone(), value);
        }
    }
    Ok(values)
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

fn apply(draft: &mut Draft<'_>, call: &ApplyCall, payload: PayloadHash) -> Result<Applied> {
    let ApplyCall { backend, begun, key, plan, options, ttl } = call;
    let attempt = Attempt { begun: *begun, ..Attempt::to_apply(backend, key, plan, payload, options) };
    let now = SystemTime::now();
    let applied = to_millis(now);
    draft.remove_expired_plans(applied)?;
    let record = draft.plan(key)?;
    let values = values(draft, plan.mutations().iter().map(|mutation| &mutation.key))?;
    let step = apply_step(plan, payload, record.as_ref(), |key| values.get(key).cloned());
    let (status, error, result) = step.end();
    let entry = attempt.entry(status, error, now)?;
    if let ApplyStep::Change(changes) = step {
        draft.check_plan(key)?;
        for change in &changes {
            put(draft, &change.key, change.after.as_ref())?;
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
        draft.put_plan(key, &record)?;
    }
    draft.put_audit(&entry)?;
    result
}

fn roll_back(
    draft: &mut Draft<'_>,
    key: &Key,
    options: &RollbackOptions,
    attempt: Attempt<'_>,
) -> Result<Rollback> {
    let now = SystemTime::now();
    draft.remove_expired_plans(to_millis(now))?;
    let record = draft.plan(key)?;
    let values = values(draft, record.iter().flat_map(|record| &record.changes).map(|change| &change.key))?;
    let step = rollback_step(record.as_ref(), options.force, |key| values.get(key).cloned());
    if let (RollbackStep::Restore, Some(record)) = (&step, &record) {
        draft.check_plan(key)?;
        for change in &record.changes {
            put(draft, &change.key, change.before.as_ref())?;
        }
        draft.put_plan(key, &PlanRecord { is_rolled_back: true, ..PlanRecord::clone(record) })?;
    }
    let attempt = attempt.about(record.as_ref());
    let (status, error, result) = step.end();
    draft.put_audit(&attempt.entry(status, error, now)?)?;
    result
}

impl ConfigBatch for File {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let values = plan.mutations().iter().filter_map(|mutation| mutation.value.as_ref());
        let bytes = values.map(|value| weight_of(value.value())).sum();
        let admitted = self.admit(plan.len(), bytes).await?;
        let call = ApplyCall {
            ttl,
            backend: self.label(),
            begun: Instant::now(),
            key: key.clone(),
            plan: plan.clone(),
            options: options.clone(),
        };
        let plan = plan.clone();
        let change = move |draft: &mut Draft<'_>, payload| apply(draft, &call, payload);
        self.encode_and_write(admitted, plan.len(), move || plan.payload_hash(), change).await
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
        let (snapshot, deadline) = (self.store.reader.snapshot(), self.deadline);
        let entries = async move {
            let snapshot = snapshot?;
            work(deadline, false, move || entries(&snapshot, &filter)).await
        };
        stream::once(entries).map(|entries| stream_of(entries.map(Vec::into_iter))).flatten()
    }
}

/// The wanted entries, from the newest on, then the error of an unreadable one.
fn entries(snapshot: &Snapshot, filter: &AuditFilter) -> Result<Vec<Result<AuditEntry>>> {
    let (mut entries, mut damage) = (Vec::new(), None);
    let limit = filter.limit.unwrap_or(usize::MAX);
    for stored in snapshot.records(RecordKey::audit())?.rev() {
        if entries.len() == limit {
            return Ok(entries);
        }
        match decode_audit(LABEL, stored?.value()) {
            Ok(entry) if filter.wants(&entry) => entries.push(Ok(entry)),
            Ok(_) => {}
            Err(error) => drop(damage.get_or_insert(error)),
        }
    }
    entries.extend(damage.map(Err));
    entries.truncate(limit);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        MAX_PLAN_RECORDS, Outcome,
        backend::file::{
            draft::{Memory, PLANS},
            engine::tests::Disk,
            tables::META,
        },
    };

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    /// Applies a plan that deletes `a` and sets `b`, and expects that it is refused and changes neither.
    fn refused(draft: &mut Draft<'_>) -> crate::Error {
        let plan =
            Plan::from_json(json!([{ "delete": "a" }, { "set": "b", "value": 2 }]).to_string()).unwrap();
        let options = ApplyOptions::default();
        let ttl = options.check().unwrap();
        let payload = plan.payload_hash();
        let call = ApplyCall { backend: LABEL, begun: Instant::now(), key: key("p"), plan, options, ttl };
        let refused = apply(draft, &call, payload).unwrap_err();
        assert_eq!(refused.outcome(), Outcome::NotApplied);
        let mut stored = |name| draft.get(&RecordKey::Config(key(name)), |bytes| Ok(bytes.to_vec())).unwrap();
        assert_eq!((stored("a"), stored("b")), (Some(b"1".to_vec()), None));
        refused
    }

    #[test]
    fn a_plan_whose_record_can_not_be_stored_changes_nothing() {
        let engine = Disk::default().store();
        engine.change(|draft| draft.put_config(key("a"), b"1").unwrap());

        let transaction = engine.begin().unwrap();
        let mut memory = Memory::default();
        let mut draft = Draft::new(&transaction, &mut memory, true).unwrap();
        assert_eq!(refused(&mut draft).code(), Some("os error 28"));
        drop(draft);
        transaction.abort().unwrap();

        let transaction = engine.begin().unwrap();
        transaction.open_table(META).unwrap().insert(PLANS, MAX_PLAN_RECORDS).unwrap();
        let mut draft = Draft::new(&transaction, &mut memory, false).unwrap();
        assert_eq!(refused(&mut draft).kind(), ErrorKind::Busy);
    }
}
