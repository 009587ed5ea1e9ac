//! A backend outside this crate that stores configs and applies plans, uses only public items, and passes the
//! kit.
//!
//! `docs/own-backend.md` explains it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use futures_core::Stream;
use futures_util::stream;
use gateway_storage::{
    Backend, ConfigBatch, ConfigStore, ConfigValue, Error, ErrorKind, Key, Result, Storage, StorageStats,
    conformance,
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Expect, MAX_AUDIT_ENTRIES,
        MAX_PLAN_BYTES, PayloadHash, Plan, PlanAction, PlanRefusal, Rollback, RollbackOptions,
    },
};

const LABEL: &str = "own";

/// Configs, plans and their audit, under one lock.
#[derive(Clone, Default)]
struct Own(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    configs: BTreeMap<Key, ConfigValue>,
    plans: BTreeMap<Key, Record>,
    /// Oldest first.
    audit: Vec<AuditEntry>,
}

/// A plan that was applied.
#[derive(Clone)]
struct Record {
    payload: PayloadHash,
    mutations: usize,
    stage: Option<String>,
    /// Each key with its values before and after the plan.
    changes: Vec<(Key, Option<ConfigValue>, Option<ConfigValue>)>,
    is_rolled_back: bool,
    expires: Instant,
}

impl Own {
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap();
        let now = Instant::now();
        state.plans.retain(|_, record| now < record.expires);
        state
    }
}

fn is_same(left: Option<&ConfigValue>, right: Option<&ConfigValue>) -> bool {
    left.map(ConfigValue::to_json) == right.map(ConfigValue::to_json)
}

fn missing(key: &Key) -> Error {
    Error::new(ErrorKind::NotFound, "no config has this key").with_key(key)
}

impl State {
    fn put(&mut self, key: &Key, value: Option<&ConfigValue>) {
        match value {
            Some(value) => drop(self.configs.insert(key.clone(), value.clone())),
            None => drop(self.configs.remove(key)),
        }
    }

    fn record_attempt(&mut self, entry: AuditEntry) {
        self.audit.push(entry);
        let over = self.audit.len().saturating_sub(MAX_AUDIT_ENTRIES);
        self.audit.drain(..over);
    }

    /// Applies the plan, or returns the reason for its refusal and the key of the value that caused it.
    fn apply(
        &mut self,
        key: &Key,
        plan: &Plan,
        options: &ApplyOptions,
    ) -> std::result::Result<Applied, (PlanRefusal, Option<Key>)> {
        let payload = plan.payload_hash();
        match self.plans.get(key) {
            Some(record) if record.payload != payload => return Err((PlanRefusal::OtherPayload, None)),
            Some(record) if record.is_rolled_back => return Err((PlanRefusal::RolledBack, None)),
            Some(_) => return Ok(Applied::Replayed),
            None => {}
        }
        for mutation in plan.mutations() {
            let found = self.configs.get(&mutation.key);
            let holds = match &mutation.expect {
                None => true,
                Some(Expect::Absent) => found.is_none(),
                Some(Expect::Value(value)) => is_same(found, Some(value)),
            };
            if !holds {
                return Err((PlanRefusal::Unexpected, Some(mutation.key.clone())));
            }
        }
        let last: BTreeMap<&Key, Option<&ConfigValue>> =
            plan.mutations().iter().map(|mutation| (&mutation.key, mutation.value.as_ref())).collect();
        let changes: Vec<_> = last
            .into_iter()
            .map(|(key, after)| (key.clone(), self.configs.get(key).cloned(), after.cloned()))
            .collect();
        let size = |value: &Option<ConfigValue>| value.as_ref().map_or(0, |value| value.to_json().len());
        if changes.iter().map(|(key, before, _)| key.as_str().len() + size(before)).sum::<usize>()
            > MAX_PLAN_BYTES
        {
            return Err((PlanRefusal::TooLarge, None));
        }
        for (key, _, after) in &changes {
            self.put(key, after.as_ref());
        }
        let record = Record {
            payload,
            mutations: plan.len(),
            stage: options.stage.clone(),
            changes,
            is_rolled_back: false,
            expires: Instant::now() + options.ttl,
        };
        self.plans.insert(key.clone(), record);
        Ok(Applied::Applied)
    }

    fn roll_back(&mut self, key: &Key, force: bool) -> Result<Rollback> {
        let Some(record) = self.plans.get_mut(key) else { return Err(PlanRefusal::NotFound.error(None)) };
        if record.is_rolled_back {
            return Ok(Rollback::AlreadyRolledBack);
        }
        let configs = &self.configs;
        let changed: Vec<Key> = record
            .changes
            .iter()
            .filter(|(key, _, after)| !is_same(configs.get(key), after.as_ref()))
            .map(|(key, ..)| key.clone())
            .collect();
        if !force && !changed.is_empty() {
            return Ok(Rollback::Refused { changed });
        }
        record.is_rolled_back = true;
        for (key, before, _) in record.changes.clone() {
            self.put(&key, before.as_ref());
        }
        Ok(Rollback::RolledBack)
    }
}

impl Backend for Own {
    fn label(&self) -> &'static str {
        LABEL
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        Ok(())
    }

    async fn stats(&self) -> Result<StorageStats> {
        let mut stats = StorageStats::new(LABEL);
        stats.config_count = self.state().configs.len() as u64;
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl ConfigStore for Own {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        self.state().configs.get(key).cloned().ok_or_else(|| missing(key))
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.state().put(key, Some(value));
        Ok(())
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.state().configs.remove(key).map(drop).ok_or_else(|| missing(key))
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        Ok(self.state().configs.clone())
    }
}

impl ConfigBatch for Own {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        options.check()?;
        let (begun, mut state) = (Instant::now(), self.state());
        let result = state.apply(key, plan, options);
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
        state.record_attempt(entry);
        result.map_err(|(refusal, key)| refusal.error(key.as_ref()))
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let (begun, mut state) = (Instant::now(), self.state());
        let record = state.plans.get(key).cloned();
        let result = state.roll_back(key, options.force);
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
        state.record_attempt(entry);
        result
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let audit = self.state().audit.clone();
        let limit = filter.limit.unwrap_or(usize::MAX);
        stream::iter(audit.into_iter().rev().filter(move |entry| filter.wants(entry)).take(limit).map(Ok))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_configs_and_plans_pass_the_kit() {
    let storage = Storage::new(Own::default());
    conformance::configs(&storage).await;
    conformance::plans(&storage).await;
}
