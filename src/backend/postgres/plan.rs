//! Plans: one at a time, each a transaction of two statements.

use std::{collections::BTreeMap, time::Duration};

use futures_core::Stream;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::{
    Postgres, config, error,
    server::Call,
    session::Session,
    statement::{Json, Parameter, Reply, Sql, column, key as name},
};
use crate::{
    Backend, ConfigBatch, ConfigValue, Key, Outcome, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, last_mutations, rollback_step},
        remote::{
            Effect,
            audit::{self, Page},
        },
    },
    codec::{PlanChange, PlanRecord, corrupt_plan, decode_changes, encode_changes, encode_config, times},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Plan, PlanAction, PlanRefusal, Rollback,
        RollbackOptions,
    },
};

/// The number of audit entries that `PageAudit` reads.
const PAGE: usize = 500;

/// The longest pause before a transaction with a conflict is retried.
const PAUSE: Duration = Duration::from_millis(20);

/// The stored record of a plan, and the config values that it changes, which are locked.
struct Stored {
    record: Option<PlanRecord>,
    configs: BTreeMap<Key, ConfigValue>,
}

impl Stored {
    fn read(reply: &Reply) -> Result<Self> {
        let (mut record, mut configs) = (None, BTreeMap::new());
        for row in &reply.rows {
            match column::<Option<&str>>(row, 0)? {
                Some(payload) => record = Some(read_record(row, payload)?),
                None => {
                    let key = name(row, 5)?;
                    let value = config::read(&key, row, 6)?;
                    configs.insert(key, value);
                }
            }
        }
        Ok(Self { record, configs })
    }

    fn get(&self, key: &Key) -> Option<ConfigValue> {
        self.configs.get(key).cloned()
    }
}

fn read_record(row: &Row, payload: &str) -> Result<PlanRecord> {
    let Json(changes) = column(row, 4)?;
    Ok(PlanRecord {
        payload: payload.parse().map_err(|_| corrupt_plan())?,
        mutations: column::<i64>(row, 1)?.try_into().map_err(|_| corrupt_plan())?,
        stage: column::<Option<String>>(row, 2)?,
        // The server compares these times with its own clock.
        applied: 0,
        expires: 0,
        is_rolled_back: column(row, 3)?,
        changes: decode_changes(changes)?,
    })
}

/// Writes the changes of a plan or of its rollback and the audit entry, and commits. `ttl` is the time to
/// live of the plan's record in milliseconds.
async fn finish(
    call: &Call<'_>,
    mut session: Session,
    attempt: &Attempt<'_>,
    status: AuditStatus,
    error: Option<PlanRefusal>,
    changes: &[PlanChange],
    ttl: u64,
) -> Result<()> {
    let payload = attempt.payload.map(|payload| payload.to_string()).unwrap_or_default();
    let is_rollback = attempt.action != PlanAction::Apply;
    let (mut set, mut texts, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
    for PlanChange { key, before, after } in changes {
        match if is_rollback { before } else { after } {
            Some(value) => {
                set.push(key.as_str());
                texts.push(encode_config(value));
            }
            None => deleted.push(key.as_str()),
        }
    }
    // A rollback does not write the record.
    let record = encode_changes(if is_rollback { &[] } else { changes });
    let number = |number: u64| Parameter::Number(i64::try_from(number).unwrap_or(i64::MAX));
    let parameters = [
        Parameter::Text(attempt.key.as_str()),
        Parameter::Texts(deleted),
        Parameter::Texts(set),
        Parameter::Jsons(texts.iter().map(|text| Json(text)).collect()),
        Parameter::Text(attempt.action.as_str()),
        Parameter::Text(status.as_str()),
        Parameter::Text(attempt.stage.unwrap_or_default()),
        Parameter::Text(attempt.source.unwrap_or_default()),
        Parameter::Number(attempt.micros()),
        number(attempt.mutations as u64),
        Parameter::Text(&payload),
        Parameter::Text(error.map_or("", PlanRefusal::as_str)),
        number(ttl),
        Parameter::Json(&record),
    ];
    session.run(call, Sql::FinishPlan, &parameters).await?;
    let committed = session.commit(call).await;
    if changes.is_empty() {
        // No value changed, whether or not the audit entry was stored.
        return committed.map_err(|error| error.with_outcome(Outcome::NotApplied));
    }
    call.server.ring();
    committed
}

/// Runs an attempt, and again after a random pause if a concurrent transaction rolled it back.
async fn retried<T, F>(call: &Call<'_>, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<Result<T>>>,
{
    loop {
        match attempt().await {
            Err(error)
                if error.outcome() == Outcome::NotApplied
                    && matches!(error.code(), Some("40001" | "40P01" | "23505")) =>
            {
                let pause = PAUSE.mul_f32(fastrand::f32());
                tokio::time::sleep_until(call.deadline.min(Instant::now() + pause)).await;
            }
            result => return result?,
        }
    }
}

impl Postgres {
    async fn apply_once(
        &self,
        call: &Call<'_>,
        plan: &Plan,
        ttl: u64,
        attempt: &Attempt<'_>,
    ) -> Result<Result<Applied>> {
        let mut session = Session::begin(call, &self.server.begin_plan).await?;
        let touched = last_mutations(plan).into_keys().map(Key::as_str).collect();
        let parameters = [Parameter::Text(attempt.key.as_str()), Parameter::Texts(touched)];
        let stored = Stored::read(&session.run(call, Sql::PlanToApply, &parameters).await?)?;
        let payload = attempt.payload.ok_or_else(error::unexpected_reply)?;
        let step = apply_step(plan, payload, stored.record.as_ref(), |key| stored.get(key));
        let (status, error, result) = step.end();
        let changes = match &step {
            ApplyStep::Change(changes) => changes.as_slice(),
            ApplyStep::Replay | ApplyStep::Refuse(..) => &[],
        };
        finish(call, session, attempt, status, error, changes, ttl).await?;
        Ok(result)
    }

    async fn roll_back_once(
        &self,
        call: &Call<'_>,
        key: &Key,
        options: &RollbackOptions,
        begun: std::time::Instant,
    ) -> Result<Result<Rollback>> {
        let attempt = Attempt { begun, ..Attempt::to_roll_back(self.label(), key, options) };
        let mut session = Session::begin(call, &self.server.begin_plan).await?;
        let parameters = [Parameter::Text(key.as_str())];
        let stored = Stored::read(&session.run(call, Sql::PlanToRollBack, &parameters).await?)?;
        let step = rollback_step(stored.record.as_ref(), options.force, |key| stored.get(key));
        let changes = match (&step, &stored.record) {
            (RollbackStep::Restore, Some(record)) => record.changes.as_slice(),
            _ => &[],
        };
        let attempt = attempt.about(stored.record.as_ref());
        let (status, error, result) = step.end();
        finish(call, session, &attempt, status, error, changes, 0).await?;
        Ok(result)
    }

    async fn audit_page(self, before: i64) -> Result<Page<i64>> {
        let reply = self.call()?.run(Effect::Read, Sql::PageAudit, &[Parameter::Number(before)]).await?;
        let entries =
            reply.rows.iter().map(|row| read_entry(self.label(), row)).collect::<Result<Vec<_>>>()?;
        let last = reply.rows.last().filter(|_| entries.len() == PAGE);
        Ok((entries, last.map(|row| column(row, 0)).transpose()?))
    }
}

impl ConfigBatch for Postgres {
    /// Four round trips: begin, which waits for other plans; read and lock; write; commit. Retried after a
    /// concurrent change, until the deadline.
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let attempt = Attempt::to_apply(self.label(), key, plan, plan.payload_hash(), options);
        let call = self.call()?;
        retried(&call, || self.apply_once(&call, plan, ttl, &attempt)).await
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let begun = std::time::Instant::now();
        let call = self.call()?;
        retried(&call, || self.roll_back_once(&call, key, options, begun)).await
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let postgres = self.clone();
        audit::pages(filter, i64::MAX, move |before| postgres.clone().audit_page(before))
    }
}

fn read_entry(backend: &'static str, row: &Row) -> Result<AuditEntry> {
    let text = |at| column::<Option<&str>>(row, at);
    let label = |at| text(at).map(|text| text.map(str::to_owned));
    let (started, finished, duration) = times(column(row, 6)?, column(row, 7)?)?;
    Ok(AuditEntry {
        backend,
        key: name(row, 1)?,
        action: text(2)?.and_then(PlanAction::named).ok_or_else(corrupt_plan)?,
        status: text(3)?.and_then(AuditStatus::named).ok_or_else(corrupt_plan)?,
        stage: label(4)?,
        source: label(5)?,
        started,
        finished,
        duration,
        mutations: column::<i64>(row, 8)?.try_into().map_err(|_| corrupt_plan())?,
        payload_hash: text(9)?.map(|text| text.parse().map_err(|_| corrupt_plan())).transpose()?,
        error: text(10)?.map(|text| PlanRefusal::named(text).ok_or_else(corrupt_plan)).transpose()?,
    })
}
