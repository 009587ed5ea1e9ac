//! Plans and their audit.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_core::Stream;
use futures_util::stream;
use gateway_storage::{
    ConfigBatch, ConfigValue, Key, Result,
    history::DocumentKind,
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Expect, MAX_AUDIT_ENTRIES,
        MAX_PLAN_BYTES, PayloadHash, Plan, PlanAction, PlanRefusal, Rollback, RollbackOptions,
    },
};

use super::{
    LABEL, Own, Store,
    documents::{Documents, Name},
};

#[derive(Default)]
pub(super) struct Plans {
    records: BTreeMap<Key, Record>,
    /// Oldest first.
    audit: Vec<AuditEntry>,
}

/// A plan that was applied.
#[derive(Clone)]
struct Record {
    payload: PayloadHash,
    mutations: usize,
    stage: Option<String>,
    changes: Vec<Change>,
    is_rolled_back: bool,
    expires: Instant,
}

/// The texts of a config value before and after a plan.
#[derive(Clone)]
struct Change {
    name: Name,
    before: Option<Arc<str>>,
    after: Option<Arc<str>>,
}

impl Plans {
    fn remove_expired(&mut self) {
        let now = Instant::now();
        self.records.retain(|_, record| now < record.expires);
    }

    fn record_attempt(&mut self, entry: AuditEntry) {
        self.audit.push(entry);
        let over = self.audit.len().saturating_sub(MAX_AUDIT_ENTRIES);
        self.audit.drain(..over);
    }
}

fn name(key: &Key) -> Name {
    (DocumentKind::Config, key.clone())
}

fn text(value: &ConfigValue) -> Arc<str> {
    value.to_json().into()
}

/// The changes of a plan, by key; of several mutations for one key the last one decides.
fn changes(plan: &Plan, documents: &Documents) -> Vec<Change> {
    let last: BTreeMap<&Key, Option<&ConfigValue>> =
        plan.mutations().iter().map(|mutation| (&mutation.key, mutation.value.as_ref())).collect();
    last.into_iter()
        .map(|(key, after)| Change {
            name: name(key),
            before: documents.get(&name(key)).cloned(),
            after: after.map(text),
        })
        .collect()
}

impl Store {
    /// Applies the plan, or returns the reason for its refusal and the key of the value that caused it.
    fn apply(
        &mut self,
        key: &Key,
        plan: &Plan,
        options: &ApplyOptions,
    ) -> std::result::Result<Applied, (PlanRefusal, Option<Key>)> {
        let payload = plan.payload_hash();
        match self.plans.records.get(key) {
            Some(record) if record.payload != payload => return Err((PlanRefusal::OtherPayload, None)),
            Some(record) if record.is_rolled_back => return Err((PlanRefusal::RolledBack, None)),
            Some(_) => return Ok(Applied::Replayed),
            None => {}
        }
        for mutation in plan.mutations() {
            let found = self.documents.get(&name(&mutation.key));
            let holds = match &mutation.expect {
                None => true,
                Some(Expect::Absent) => found.is_none(),
                Some(Expect::Value(value)) => found == Some(&text(value)),
            };
            if !holds {
                return Err((PlanRefusal::Unexpected, Some(mutation.key.clone())));
            }
        }
        let changes = changes(plan, &self.documents);
        let kept = |change: &Change| {
            change.name.1.as_str().len() + change.before.as_ref().map_or(0, |before| before.len())
        };
        if changes.iter().map(kept).sum::<usize>() > MAX_PLAN_BYTES {
            return Err((PlanRefusal::TooLarge, None));
        }
        for change in &changes {
            self.documents.put(change.name.clone(), change.after.as_deref());
        }
        let record = Record {
            payload,
            mutations: plan.len(),
            stage: options.stage.clone(),
            changes,
            is_rolled_back: false,
            expires: Instant::now() + options.ttl,
        };
        self.plans.records.insert(key.clone(), record);
        Ok(Applied::Applied)
    }

    fn roll_back(&mut self, key: &Key, force: bool) -> Result<Rollback> {
        let record = self.plans.records.get_mut(key).ok_or_else(|| PlanRefusal::NotFound.error(None))?;
        if record.is_rolled_back {
            return Ok(Rollback::AlreadyRolledBack);
        }
        let documents = &mut self.documents;
        let changed: Vec<Key> = record
            .changes
            .iter()
            .filter(|change| documents.get(&change.name) != change.after.as_ref())
            .map(|change| change.name.1.clone())
            .collect();
        if !force && !changed.is_empty() {
            return Ok(Rollback::Refused { changed });
        }
        record.is_rolled_back = true;
        for change in &record.changes {
            documents.put(change.name.clone(), change.before.as_deref());
        }
        Ok(Rollback::RolledBack)
    }
}

impl ConfigBatch for Own {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        options.check()?;
        let (begun, mut store) = (Instant::now(), self.lock()?);
        store.plans.remove_expired();
        let result = store.apply(key, plan, options);
        let status = match &result {
            Ok(Applied::Applied) => AuditStatus::Committed,
            Ok(Applied::Replayed) => AuditStatus::Replayed,
            Err(_) => AuditStatus::Failed,
        };
        let attempt = (PlanAction::Apply, status);
        let mut entry = AuditEntry::new(LABEL, key, attempt, SystemTime::now(), begun.elapsed())
            .with_plan(plan.payload_hash(), plan.len());
        entry = options.stage.iter().fold(entry, |entry, stage| entry.with_stage(stage));
        entry = options.source.iter().fold(entry, |entry, source| entry.with_source(source));
        if let Err((refusal, _)) = &result {
            entry = entry.with_error(*refusal);
        }
        store.plans.record_attempt(entry);
        result.map_err(|(refusal, key)| refusal.error(key.as_ref()))
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let (begun, mut store) = (Instant::now(), self.lock()?);
        store.plans.remove_expired();
        let record = store.plans.records.get(key).cloned();
        let result = store.roll_back(key, options.force);
        let (status, refusal) = match &result {
            Ok(Rollback::RolledBack) => (AuditStatus::Committed, None),
            Ok(Rollback::AlreadyRolledBack) => (AuditStatus::Replayed, None),
            Ok(Rollback::Refused { .. }) => (AuditStatus::Failed, Some(PlanRefusal::Changed)),
            Err(_) => (AuditStatus::Failed, Some(PlanRefusal::NotFound)),
        };
        let attempt = (options.action(), status);
        let mut entry = AuditEntry::new(LABEL, key, attempt, SystemTime::now(), begun.elapsed());
        if let Some(record) = record {
            entry = entry.with_plan(record.payload, record.mutations);
            entry = record.stage.into_iter().fold(entry, AuditEntry::with_stage);
        }
        entry = options.source.iter().fold(entry, |entry, source| entry.with_source(source));
        entry = refusal.into_iter().fold(entry, AuditEntry::with_error);
        store.plans.record_attempt(entry);
        result
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let entries = self.lock().map(|store| {
            let wanted = store.plans.audit.iter().rev().filter(|entry| filter.wants(entry));
            wanted.take(filter.limit.unwrap_or(usize::MAX)).cloned().map(Ok).collect()
        });
        stream::iter(entries.unwrap_or_else(|error| vec![Err(error)]))
    }
}
