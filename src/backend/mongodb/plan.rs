//! Plans: each is one transaction or, on a standalone server, which has none, two stages under a lease.

use futures_core::Stream;
use mongodb::bson::{Bson, DateTime, Document, doc};
use tokio::time::Instant;

use super::{
    MongoDb,
    commit::commit,
    plan_session::{
        AUDIT, AttemptStart, MAX_RECORD_BYTES, PLANS, PlanSession, changed_keys, read_record, unexpected,
        value_in,
    },
};
use crate::{
    Backend, ConfigBatch, ErrorKind, Key, Outcome, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, last_mutations, rollback_step},
        remote::{
            Backoff, Effect,
            audit::{self, Page},
            busy,
        },
    },
    codec::{PlanChange, corrupt_plan, encode_changes, times},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, PayloadHash, Plan, PlanAction,
        PlanRefusal, Rollback, RollbackOptions,
    },
};

/// How many audit entries are read at a time.
const PAGE: i32 = 500;

/// Encodes the changes of a record. None: a document can't hold them.
fn encoded(changes: &[PlanChange]) -> Result<Option<String>> {
    let encoded = String::from_utf8(encode_changes(changes)).map_err(|_| corrupt_plan())?;
    Ok(Some(encoded).filter(|encoded| encoded.len() <= MAX_RECORD_BYTES))
}

fn entry_of(
    attempt: &Attempt<'_>,
    start: &AttemptStart,
    status: AuditStatus,
    error: Option<PlanRefusal>,
) -> Document {
    let mut entry = doc! {
        "_id": start.number, "key": attempt.key.as_str(), "action": attempt.action.as_str(), "status": status.as_str(),
        "finished": start.now, "micros": attempt.micros(),
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

/// A caller's request, owned by the task that runs it.
#[derive(Clone)]
struct Request {
    backend: &'static str,
    key: Key,
    begun: std::time::Instant,
    action: Action,
}

#[derive(Clone)]
enum Action {
    Apply { plan: Plan, payload: PayloadHash, options: ApplyOptions, ttl: u64 },
    RollBack(RollbackOptions),
}

enum Answer {
    Applied(Result<Applied>),
    RolledBack(Result<Rollback>),
}

impl Request {
    /// Decides what to do from the stored values, and writes it. The boolean: whether it changes something.
    async fn execute(&self, session: &mut PlanSession, start: &AttemptStart) -> Result<(Answer, bool)> {
        let Self { backend, key, begun, action } = self;
        let filter = doc! { "_id": key.as_str(), "expires": { "$gt": start.now } };
        let found = session.find(PLANS, filter).await?.into_iter().next();
        let record = found.as_ref().map(read_record).transpose()?;
        let (mut new_record, stored);
        let (answer, entry) = match action {
            Action::Apply { plan, payload, options, ttl } => {
                // A replay needs no values.
                let touched =
                    if record.is_some() { Vec::new() } else { last_mutations(plan).into_keys().collect() };
                stored = session.stored(&touched).await?;
                let mut step = apply_step(plan, *payload, record.as_ref(), |key| value_in(&stored, key));
                new_record = None;
                if let ApplyStep::Change(changes) = &step {
                    if let Some(changes) = encoded(changes)? {
                        let now = start.now.timestamp_millis();
                        let mut record = doc! {
                            "payload": payload.to_string(), "mutations": i64::try_from(plan.len()).unwrap_or(i64::MAX),
                            "applied": start.now, "rolled_back": false, "changes": changes,
                            "expires": DateTime::from_millis(now.saturating_add_unsigned(*ttl)),
                        };
                        if let Some(stage) = &options.stage {
                            record.insert("stage", stage);
                        }
                        new_record = Some((record, false));
                    } else {
                        step = ApplyStep::Refuse(PlanRefusal::TooLarge, None);
                    }
                }
                let (status, error, result) = step.end();
                let attempt = Attempt::to_apply(backend, key, plan, *payload, options);
                let entry = entry_of(&Attempt { begun: *begun, ..attempt }, start, status, error);
                let expired = doc! { "expires": { "$lte": start.now } };
                session.delete(PLANS, expired).await?;
                (Answer::Applied(result), entry)
            }
            Action::RollBack(options) => {
                stored = session.stored(&record.as_ref().map(changed_keys).unwrap_or_default()).await?;
                let step = rollback_step(record.as_ref(), options.force, |key| value_in(&stored, key));
                new_record =
                    found.filter(|_| matches!(step, RollbackStep::Restore)).map(|found| (found, true));
                if let (Some((new, _)), Some(record), true) = (&mut new_record, &record, options.force) {
                    // A forced rollback also replaces values that were changed after the plan.
                    let changes = record.changes.iter().cloned();
                    let changes =
                        changes.map(|change| PlanChange { after: value_in(&stored, &change.key), ..change });
                    let changes = encoded(&changes.collect::<Vec<_>>())?;
                    new.insert("changes", changes.ok_or_else(|| PlanRefusal::TooLarge.error(None))?);
                }
                let attempt = Attempt { begun: *begun, ..Attempt::to_roll_back(backend, key, options) };
                let attempt = attempt.about(record.as_ref());
                let (status, error, result) = step.end();
                (Answer::RolledBack(result), entry_of(&attempt, start, status, error))
            }
        };
        let changes_something = new_record.is_some();
        session.write(key, new_record, &stored, entry).await?;
        Ok((answer, changes_something))
    }

    /// Runs one attempt. It runs to its end in a task of its own, even if the call is dropped.
    async fn run(self, mut session: PlanSession, deadline: Instant) -> Result<Answer> {
        let mut backoff = Backoff::until(deadline);
        let start = session.start(&mut backoff).await?;
        if !session.is_standalone() {
            let (answer, changes_something) = self.execute(&mut session, &start).await?;
            commit(session.session, session.until).await.map_err(|error| {
                // Only the audit entry is in doubt.
                if changes_something { error } else { error.with_outcome(Outcome::NotApplied) }
            })?;
            return Ok(answer);
        }
        if let Err(error) = session.finish_pending().await {
            drop(session.release_lease().await);
            return Err(error.with_outcome(Outcome::NotApplied));
        }
        // Once the record may be stored, the next attempt finishes it.
        let executed = self.execute(&mut session, &start).await;
        let (answer, _) = executed.map_err(|error| error.with_outcome(Outcome::Unknown))?;
        // A lease that is not released expires.
        drop(session.release_lease().await);
        Ok(answer)
    }
}

impl MongoDb {
    async fn run_plan(&self, request: Request) -> Result<Answer> {
        let call = self.call()?;
        let mut backoff = Backoff::until(call.deadline);
        loop {
            let session = self.plan_session(&call).await?;
            let attempt = request.clone().run(session, call.deadline);
            match call.detached(Effect::Write, attempt).await? {
                // Another attempt was in the way on the server, or an index is being built, which locks the
                // collection: a transaction waits for a lock 5 ms only. Nothing was applied.
                Err(error)
                    if error.outcome() == Outcome::NotApplied
                        && matches!(error.kind(), ErrorKind::Busy | ErrorKind::Conflict)
                        && error.code().is_some() =>
                {
                    if !backoff.pause().await {
                        return Err(busy());
                    }
                }
                result => return result,
            }
        }
    }

    async fn audit_page(self, before: i64) -> Result<Page<i64>> {
        let call = self.call()?;
        let permit = call.permit().await?;
        let filter = doc! { "_id": { "$lt": before } };
        let find = doc! {
            "find": AUDIT, "filter": filter, "sort": { "_id": -1 }, "limit": PAGE, "batchSize": PAGE, "singleBatch": true,
        };
        let reply = call.ask(permit.database.run_command(find)).await?;
        let cursor = reply.get_document("cursor").map_err(|_| unexpected())?;
        let found = cursor.get_array("firstBatch").map_err(|_| unexpected())?;
        let found: Vec<&Document> = found.iter().filter_map(Bson::as_document).collect();
        let entries =
            found.iter().map(|found| read_entry(self.label(), found)).collect::<Result<Vec<_>>>()?;
        let last = found.last().filter(|_| entries.len() == PAGE as usize);
        let next = last.map(|last| last.get_i64("_id").map_err(|_| corrupt_plan())).transpose()?;
        Ok((entries, next))
    }
}

fn read_entry(backend: &'static str, found: &Document) -> Result<AuditEntry> {
    let corrupt = |_| corrupt_plan();
    let text = |name: &str| found.get_str(name).ok();
    let finished = found.get_datetime("finished").map_err(corrupt)?.timestamp_millis();
    let (started, finished, duration) = times(finished, found.get_i64("micros").map_err(corrupt)?)?;
    Ok(AuditEntry {
        backend,
        key: Key::new(found.get_str("key").map_err(corrupt)?).map_err(|_| corrupt_plan())?,
        action: text("action").and_then(PlanAction::named).ok_or_else(corrupt_plan)?,
        status: text("status").and_then(AuditStatus::named).ok_or_else(corrupt_plan)?,
        stage: text("stage").map(str::to_owned),
        source: text("source").map(str::to_owned),
        started,
        finished,
        duration,
        mutations: found.get_i64("mutations").map_err(corrupt)?.try_into().map_err(|_| corrupt_plan())?,
        payload_hash: text("payload").map(|text| text.parse().map_err(|_| corrupt_plan())).transpose()?,
        error: text("error").map(|text| PlanRefusal::named(text).ok_or_else(corrupt_plan)).transpose()?,
    })
}

impl ConfigBatch for MongoDb {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let (begun, payload) = (std::time::Instant::now(), plan.payload_hash());
        let action = Action::Apply { plan: plan.clone(), payload, options: options.clone(), ttl };
        match self.run_plan(Request { backend: self.label(), key: key.clone(), begun, action }).await? {
            Answer::Applied(result) => result,
            Answer::RolledBack(_) => Err(unexpected()),
        }
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let (begun, action) = (std::time::Instant::now(), Action::RollBack(options.clone()));
        match self.run_plan(Request { backend: self.label(), key: key.clone(), begun, action }).await? {
            Answer::RolledBack(result) => result,
            Answer::Applied(_) => Err(unexpected()),
        }
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let mongodb = self.clone();
        audit::pages(filter, i64::MAX, move |before| mongodb.clone().audit_page(before))
    }
}
