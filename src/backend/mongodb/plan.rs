//! Plans: one transaction; on a standalone server, which has none, two stages under a lease.

use std::collections::BTreeMap;

use futures_core::Stream;
use mongodb::bson::{Bson, DateTime, Document, doc};
use tokio::time::Instant;

use super::{
    MongoDb,
    desk::{AUDIT, Desk, MAX_RECORD_BYTES, PLANS, Seat, Turn, busy, read_record, wrong},
    transaction::{Pauses, commit},
};
use crate::{
    Backend, ConfigBatch, ConfigValue, Error, ErrorKind, Key, Outcome, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, last_mutations, rollback_step},
        remote::{
            Effect,
            audit::{self, Page},
        },
    },
    codec::{PlanChange, PlanRecord, corrupt_plan, encode_changes, times},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, PayloadHash, Plan, PlanAction,
        PlanRefusal, Rollback, RollbackOptions,
    },
};

/// How many audit entries are read at a time.
const PAGE: i32 = 500;

/// The changes of a record, from what is stored now.
fn as_found(record: &PlanRecord, stored: &BTreeMap<Key, ConfigValue>) -> Result<String> {
    let changes = record.changes.iter().map(|change| PlanChange {
        key: change.key.clone(),
        before: change.before.clone(),
        after: stored.get(&change.key).cloned(),
    });
    let changes = encode_changes(&changes.collect::<Vec<_>>());
    if changes.len() > MAX_RECORD_BYTES {
        return Err(PlanRefusal::TooLarge.error(None));
    }
    String::from_utf8(changes).map_err(|_| corrupt_plan())
}

fn entry_of(attempt: &Attempt<'_>, turn: &Turn, status: AuditStatus, error: Option<PlanRefusal>) -> Document {
    let mut entry = doc! {
        "_id": turn.number, "key": attempt.key.as_str(), "action": attempt.action.as_str(), "status": status.as_str(),
        "finished": turn.now, "micros": attempt.micros(),
        "mutations": i64::try_from(attempt.mutations).unwrap_or(i64::MAX),
    };
    let optional = [
        ("stage", attempt.stage.map(str::to_owned)),
        ("source", attempt.source.map(str::to_owned)),
        ("payload", attempt.payload.map(|payload| payload.to_string())),
        ("error", error.map(|error| error.as_str().to_owned())),
    ];
    for (name, text) in optional {
        if let Some(text) = text {
            entry.insert(name, text);
        }
    }
    entry
}

/// What a caller asks for, owned by the task that does it.
#[derive(Clone)]
struct Order {
    backend: &'static str,
    key: Key,
    begun: std::time::Instant,
    what: What,
}

#[derive(Clone)]
enum What {
    Apply { plan: Plan, payload: PayloadHash, options: ApplyOptions, ttl: u64 },
    RollBack(RollbackOptions),
}

enum Done {
    Applied(Result<Applied>),
    RolledBack(Result<Rollback>),
}

impl Order {
    /// Decides and stores, once it is its turn.
    async fn carry_out(&self, desk: &mut Desk, turn: &Turn) -> Result<(Done, bool)> {
        let Self { backend, key, begun, what } = self;
        let filter = doc! { "_id": key.as_str(), "expires": { "$gt": turn.now } };
        let found = desk.find(PLANS, filter).await?.into_iter().next();
        let record = found.as_ref().map(read_record).transpose()?;
        match what {
            What::Apply { plan, payload, options, ttl } => {
                let touched: Vec<&Key> = last_mutations(plan).into_keys().collect();
                // A replay asks for no values.
                let stored = if record.is_some() { BTreeMap::new() } else { desk.look(&touched).await? };
                let mut step = apply_step(plan, *payload, record.as_ref(), |key| stored.get(key).cloned());
                let mut kept = None;
                if let ApplyStep::Change(changes) = &step {
                    let changes = String::from_utf8(encode_changes(changes)).map_err(|_| corrupt_plan())?;
                    if changes.len() > MAX_RECORD_BYTES {
                        step = ApplyStep::Refuse(PlanRefusal::TooLarge, None);
                    } else {
                        let now = turn.now.timestamp_millis();
                        let mut record = doc! {
                            "payload": payload.to_string(), "mutations": i64::try_from(plan.len()).unwrap_or(i64::MAX),
                            "applied": turn.now, "rolled_back": false, "changes": changes,
                            "expires": DateTime::from_millis(now.saturating_add_unsigned(*ttl)),
                        };
                        if let Some(stage) = &options.stage {
                            record.insert("stage", stage);
                        }
                        kept = Some((record, false));
                    }
                }
                let (status, error, result) = step.end();
                let attempt = Attempt::to_apply(backend, key, plan, *payload, options);
                let entry = entry_of(&Attempt { begun: *begun, ..attempt }, turn, status, error);
                let expired = doc! { "expires": { "$lte": turn.now } };
                desk.delete(PLANS, expired).await?;
                let changes_something = kept.is_some();
                desk.carry_out(key, kept, entry).await?;
                Ok((Done::Applied(result), changes_something))
            }
            What::RollBack(options) => {
                let touched: Vec<&Key> =
                    record.iter().flat_map(|record| &record.changes).map(|change| &change.key).collect();
                let stored = desk.look(&touched).await?;
                let step = rollback_step(record.as_ref(), options.force, |key| stored.get(key).cloned());
                let mut kept =
                    found.filter(|_| matches!(step, RollbackStep::Restore)).map(|found| (found, true));
                if let (Some((kept, _)), Some(record), true) = (&mut kept, &record, options.force) {
                    // What is there instead of what the plan set is to go, too.
                    kept.insert("changes", as_found(record, &stored)?);
                }
                let attempt = Attempt { begun: *begun, ..Attempt::to_roll_back(backend, key, options) };
                let attempt = match &record {
                    Some(record) => attempt.about(record),
                    None => attempt,
                };
                let (status, error, result) = step.end();
                let changes_something = kept.is_some();
                desk.carry_out(key, kept, entry_of(&attempt, turn, status, error)).await?;
                Ok((Done::RolledBack(result), changes_something))
            }
        }
    }

    /// One attempt, in a task of its own: it runs to its end, whoever waits for it.
    async fn run(self, mut desk: Desk, deadline: Instant) -> Result<Done> {
        let mut pauses = Pauses::until(deadline);
        let turn = desk.turn(&mut pauses).await?;
        if let Seat::Transaction(_) = desk.seat {
            let (done, changes_something) = self.carry_out(&mut desk, &turn).await?;
            let Seat::Transaction(Some(session)) = desk.seat else { return Err(wrong()) };
            commit(session, desk.until).await.map_err(|error| {
                // Whether the audit has it or not, nothing was changed.
                if changes_something { error } else { error.with_outcome(Outcome::NotApplied) }
            })?;
            return Ok(done);
        }
        if let Err(error) = desk.recover().await {
            drop(desk.leave(&turn).await);
            return Err(error.with_outcome(Outcome::NotApplied));
        }
        // Once something may be pending, whoever comes next finishes it.
        let (done, _) =
            self.carry_out(&mut desk, &turn).await.map_err(|error| error.with_outcome(Outcome::Unknown))?;
        // If it is not given back it ends by itself.
        drop(desk.leave(&turn).await);
        Ok(done)
    }
}

impl MongoDb {
    async fn order(&self, order: Order) -> Result<Done> {
        let call = self.call()?;
        let mut pauses = Pauses::until(call.deadline());
        loop {
            let desk = self.desk(&call).await?;
            let attempt = order.clone().run(desk, call.deadline());
            match call.detached(Effect::Write, attempt).await? {
                Err(error) if met_another(&error) => {
                    if !pauses.pause().await {
                        return Err(busy());
                    }
                }
                result => return result,
            }
        }
    }

    async fn audit_page(&self, before: i64) -> Result<Page<i64>> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let filter = doc! { "_id": { "$lt": before } };
        let find = doc! {
            "find": AUDIT, "filter": filter, "sort": { "_id": -1 }, "limit": PAGE, "batchSize": PAGE, "singleBatch": true,
        };
        let answer = call.ask(lane.database.run_command(find)).await?;
        let cursor = answer.get_document("cursor").map_err(|_| wrong())?;
        let found = cursor.get_array("firstBatch").map_err(|_| wrong())?;
        let found: Vec<&Document> = found.iter().filter_map(Bson::as_document).collect();
        let entries =
            found.iter().map(|found| read_entry(self.label(), found)).collect::<Result<Vec<_>>>()?;
        let last = found.last().filter(|_| entries.len() == PAGE as usize);
        let next = last.map(|last| last.get_i64("_id").map_err(|_| corrupt_plan())).transpose()?;
        Ok((entries, next))
    }
}

/// Whether an attempt met another one, and did nothing.
fn met_another(error: &Error) -> bool {
    error.outcome() == Outcome::NotApplied && error.kind() == ErrorKind::Conflict && error.code().is_some()
}

fn read_entry(backend: &'static str, found: &Document) -> Result<AuditEntry> {
    let wrong = |_| corrupt_plan();
    let text = |name: &str| found.get_str(name).ok();
    let finished = found.get_datetime("finished").map_err(wrong)?.timestamp_millis();
    let (started, finished, duration) = times(finished, found.get_i64("micros").map_err(wrong)?)?;
    Ok(AuditEntry {
        backend,
        key: Key::new(found.get_str("key").map_err(wrong)?).map_err(|_| corrupt_plan())?,
        action: text("action").and_then(PlanAction::named).ok_or_else(corrupt_plan)?,
        status: text("status").and_then(AuditStatus::named).ok_or_else(corrupt_plan)?,
        stage: text("stage").map(str::to_owned),
        source: text("source").map(str::to_owned),
        started,
        finished,
        duration,
        mutations: found.get_i64("mutations").map_err(wrong)?.try_into().map_err(|_| corrupt_plan())?,
        payload_hash: text("payload").map(|text| text.parse().map_err(|_| corrupt_plan())).transpose()?,
        error: text("error").map(|text| PlanRefusal::named(text).ok_or_else(corrupt_plan)).transpose()?,
    })
}

impl ConfigBatch for MongoDb {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let (begun, payload) = (std::time::Instant::now(), plan.payload_hash());
        let what = What::Apply { plan: plan.clone(), payload, options: options.clone(), ttl };
        match self.order(Order { backend: self.label(), key: key.clone(), begun, what }).await? {
            Done::Applied(result) => result,
            Done::RolledBack(_) => Err(wrong()),
        }
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let (begun, what) = (std::time::Instant::now(), What::RollBack(options.clone()));
        match self.order(Order { backend: self.label(), key: key.clone(), begun, what }).await? {
            Done::RolledBack(result) => result,
            Done::Applied(_) => Err(wrong()),
        }
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let mongodb = self.clone();
        audit::pages(filter, i64::MAX, move |before| {
            let mongodb = mongodb.clone();
            async move { mongodb.audit_page(before).await }
        })
    }
}
