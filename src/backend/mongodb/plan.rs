//! Plans: one transaction; on a standalone server, which has none, two stages under a lease.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_core::Stream;
use mongodb::{
    ClientSession,
    bson::{Bson, DateTime, Document, RawDocumentBuf, doc},
    options::WriteConcern,
};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout_at},
};

use super::{
    MongoDb, document, failure,
    pool::Lease,
    server::{Call, no_reply},
    session::Session,
    topology::Writable,
    transaction::{Pauses, commit, of_statement},
};
use crate::{
    Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Backend, ConfigBatch, ConfigValue, Error,
    ErrorKind, Key, MAX_AUDIT_ENTRIES, Outcome, PayloadHash, Plan, PlanAction, PlanRefusal, Result, Rollback,
    RollbackOptions,
    backend::remote::{
        Effect,
        audit::{self, Page},
        batch,
    },
    capability::{ApplyStep, Attempt, RollbackStep, apply_step, last_mutations, rollback_step},
    codec::{PlanRecord, corrupt_plan, decode_changes, encode_changes, is_same, times},
};

const CONFIGS: &str = "configs";
const PLANS: &str = "plans";
const AUDIT: &str = "plan_audit";

/// Holds one document, `{ _id: "plans" }`: the number of the last attempt, and on a standalone server who is at it.
const META: &str = "meta";

/// The most that a record may have: it is one document.
const MAX_RECORD_BYTES: usize = 15 << 20;

/// How long whoever holds the lease may go on, and after how long another one takes over what it left.
const WORK: Duration = Duration::from_secs(7);
const LEASE: Duration = Duration::from_secs(10);

/// How many audit entries are read at a time.
const PAGE: i32 = 500;

/// Who speaks to the server: in a transaction, or under the lease of a standalone server.
struct Desk {
    lane: Lease,
    seat: Seat,
    /// No command is sent later.
    until: Instant,
    /// In turn with the other plans of this store.
    _turn: OwnedMutexGuard<()>,
}

enum Seat {
    /// Taken when it is committed.
    Transaction(Option<Session>),
    /// Only so that a cursor is read on where it began.
    Alone(Box<ClientSession>),
}

/// What an attempt is told by the document that all attempts change.
struct Turn {
    number: i64,
    now: DateTime,
}

/// What one config value becomes.
type Value<'v> = (&'v Key, Option<&'v ConfigValue>);

/// What it was, too.
struct Change<'c> {
    key: &'c Key,
    from: Option<&'c ConfigValue>,
    to: Option<&'c ConfigValue>,
}

impl Desk {
    /// The answer to a command. None is sent when the time is over.
    async fn ask(&mut self, effect: Effect, mut command: Document) -> Result<Document> {
        if Instant::now() >= self.until {
            return Err(no_reply(effect));
        }
        let answer = match &mut self.seat {
            Seat::Transaction(session) => {
                let session = session.as_mut().ok_or_else(wrong)?;
                let sent = self.lane.database.run_command(command).session(session.driver()).await;
                sent.map_err(|error| of_statement(&error))?
            }
            Seat::Alone(session) => {
                if effect == Effect::Write {
                    command.insert("writeConcern", concern(&self.lane.write_concern));
                }
                let sent = self.lane.database.run_command(command).session(&mut **session).await;
                sent.map_err(|error| failure::of_request(&error, effect))?
            }
        };
        if let Some(refused) = answer.get_array("writeErrors").ok().and_then(|errors| errors.first()) {
            let code = refused.as_document().and_then(|error| error.get_i32("code").ok()).unwrap_or_default();
            return Err(failure::of_code(code));
        }
        match failure::of_write_concern(&answer) {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    /// Everything that a query finds.
    async fn find(&mut self, collection: &str, filter: Document) -> Result<Vec<Document>> {
        let mut answer = self.ask(Effect::Read, doc! { "find": collection, "filter": filter }).await?;
        let mut found = Vec::new();
        loop {
            let cursor = answer.get_document("cursor").map_err(|_| wrong())?;
            let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch"));
            for item in batch.map_err(|_| wrong())? {
                found.push(item.as_document().ok_or_else(wrong)?.clone());
            }
            match cursor.get_i64("id").map_err(|_| wrong())? {
                0 => return Ok(found),
                id => {
                    let more = doc! { "getMore": id, "collection": collection };
                    answer = self.ask(Effect::Read, more).await?;
                }
            }
        }
    }

    async fn upsert(&mut self, collection: &str, id: impl Into<Bson>, change: Document) -> Result<()> {
        let statement = doc! { "q": { "_id": id.into() }, "u": change, "upsert": true };
        self.ask(Effect::Write, doc! { "update": collection, "updates": [statement] }).await.map(drop)
    }

    async fn delete(&mut self, collection: &str, filter: Document) -> Result<()> {
        let statement = doc! { "q": filter, "limit": 0 };
        self.ask(Effect::Write, doc! { "delete": collection, "deletes": [statement] }).await.map(drop)
    }

    /// Changes config values, in the order of their keys.
    async fn put(&mut self, values: &[Value<'_>]) -> Result<()> {
        let (sets, deletes): (Vec<Value<'_>>, Vec<Value<'_>>) =
            values.iter().copied().partition(|(_, value)| value.is_some());
        let statements = sets
            .iter()
            .filter_map(|(key, value)| Some((key, document::of_config((*value)?))))
            .map(|(key, body)| {
                let body = Document::try_from(&*body).map_err(document::damaged)?;
                Ok(doc! { "q": { "_id": key.as_str() }, "u": body, "upsert": true })
            })
            .collect::<Result<Vec<_>>>()?;
        for range in batch::chunks(&sets, |(_, value)| value.map_or(0, |value| value.to_json().len())) {
            let chunk = statements[range].to_vec();
            self.ask(Effect::Write, doc! { "update": CONFIGS, "updates": chunk }).await?;
        }
        for chunk in deletes.chunks(1000) {
            let keys: Vec<&str> = chunk.iter().map(|(key, _)| key.as_str()).collect();
            self.delete(CONFIGS, doc! { "_id": { "$in": keys } }).await?;
        }
        Ok(())
    }

    /// Changes the config values that are still what they were when that was decided, and leaves those that somebody changed
    /// since. Nothing locks them: so a value is changed only as it is found.
    async fn put_unchanged(&mut self, changes: &[Change<'_>]) -> Result<()> {
        for chunk in changes.chunks(1000) {
            let names: Vec<&str> = chunk.iter().map(|change| change.key.as_str()).collect();
            let mut found = BTreeMap::new();
            for document in self.find(CONFIGS, doc! { "_id": { "$in": names } }).await? {
                let raw = RawDocumentBuf::try_from(&document).map_err(document::damaged)?;
                let key = document::key(&raw)?;
                let value = document::config(&key, &raw)?;
                found.insert(key, (document, value));
            }
            let (mut updates, mut deletes) = (Vec::new(), Vec::new());
            for Change { key, from, to } in chunk {
                let found = found.get(*key);
                let is = |wanted: Option<&ConfigValue>| match (wanted, found) {
                    (Some(wanted), Some((_, value))) => is_same(wanted, value),
                    (wanted, found) => wanted.is_none() && found.is_none(),
                };
                if is(*to) || !is(*from) {
                    continue;
                }
                let body = to.map(|value| Document::try_from(&*document::of_config(value)));
                match (found, body.transpose().map_err(document::damaged)?) {
                    (Some((as_found, _)), Some(body)) => {
                        updates.push(doc! { "q": as_found.clone(), "u": body });
                    }
                    (None, Some(body)) => {
                        let made = doc! { "$setOnInsert": body };
                        updates.push(doc! { "q": { "_id": key.as_str() }, "u": made, "upsert": true });
                    }
                    (Some((as_found, _)), None) => deletes.push(doc! { "q": as_found.clone(), "limit": 1 }),
                    (None, None) => {}
                }
            }
            let bytes = |statement: &Document| {
                RawDocumentBuf::try_from(statement).map_or(0, |raw| raw.as_bytes().len())
            };
            for range in batch::chunks(&updates, bytes) {
                self.ask(Effect::Write, doc! { "update": CONFIGS, "updates": updates[range].to_vec() })
                    .await?;
            }
            for range in batch::chunks(&deletes, bytes) {
                self.ask(Effect::Write, doc! { "delete": CONFIGS, "deletes": deletes[range].to_vec() })
                    .await?;
            }
        }
        Ok(())
    }

    /// What is stored under some keys.
    async fn look(&mut self, keys: &[&Key]) -> Result<BTreeMap<Key, ConfigValue>> {
        let mut values = BTreeMap::new();
        for chunk in keys.chunks(1000) {
            let names: Vec<&str> = chunk.iter().map(|key| key.as_str()).collect();
            for found in self.find(CONFIGS, doc! { "_id": { "$in": names } }).await? {
                let raw = RawDocumentBuf::try_from(&found).map_err(document::damaged)?;
                let key = document::key(&raw)?;
                let value = document::config(&key, &raw)?;
                values.insert(key, value);
            }
        }
        Ok(values)
    }

    /// Takes the next number: in a transaction whoever else takes it is a conflict.
    async fn turn(&mut self, pauses: &mut Pauses) -> Result<Turn> {
        let next = doc! { "$add": [{ "$ifNull": ["$number", 0_i64] }, 1_i64] };
        let mut fields = doc! { "number": next, "now": "$$NOW" };
        let is_alone = matches!(self.seat, Seat::Alone(_));
        let mut query = doc! { "_id": PLANS };
        if is_alone {
            fields.insert("lease", doc! { "$add": ["$$NOW", millis(LEASE)] });
            query.insert("$expr", doc! { "$lte": ["$lease", "$$NOW"] });
        }
        loop {
            let asked = Instant::now();
            let take = doc! {
                "findAndModify": META, "query": query.clone(), "update": [{ "$set": fields.clone() }],
                "upsert": !is_alone, "new": true,
            };
            let answer = self.ask(Effect::Write, take).await?;
            if let Ok(found) = answer.get_document("value") {
                let number = found.get_i64("number").map_err(|_| wrong())?;
                let now = *found.get_datetime("now").map_err(|_| wrong())?;
                // The server's time began after this.
                self.until = asked + WORK;
                return Ok(Turn { number, now });
            }
            // It is taken, or it is not there yet.
            self.upsert(META, PLANS, doc! { "$setOnInsert": { "number": 0_i64 } }).await.or_else(already)?;
            if !pauses.pause().await {
                return Err(busy());
            }
        }
    }

    /// Gives the lease back.
    async fn leave(&mut self, turn: &Turn) -> Result<()> {
        let change = doc! { "q": { "_id": PLANS, "number": turn.number }, "u": { "$unset": { "lease": 1 } } };
        self.ask(Effect::Write, doc! { "update": META, "updates": [change] }).await.map(drop)
    }

    /// Finishes what others began under the lease and did not finish.
    async fn recover(&mut self) -> Result<()> {
        for left in self.find(PLANS, doc! { "pending": { "$exists": true } }).await? {
            let pending = left.get_document("pending").map_err(|_| corrupt_plan())?.clone();
            let record = read_record(&left)?;
            let is_back = pending.get_bool("back").map_err(|_| corrupt_plan())?;
            let id = left.get("_id").cloned().ok_or_else(corrupt_plan)?;
            let entry = pending.get_document("entry").map_err(|_| corrupt_plan())?.clone();
            self.finish(&record, is_back, id, entry, true).await?;
        }
        Ok(())
    }

    /// The second stage: the values, the audit, and that it is done. Doing it twice is doing it once.
    /// What another one left (`was_left`) may be old: what somebody changed since stays.
    async fn finish(
        &mut self,
        record: &PlanRecord,
        is_back: bool,
        id: Bson,
        entry: Document,
        was_left: bool,
    ) -> Result<()> {
        let sides = record.changes.iter().map(|change| {
            let (before, after) = (change.before.as_ref(), change.after.as_ref());
            let (from, to) = if is_back { (after, before) } else { (before, after) };
            Change { key: &change.key, from, to }
        });
        let changes: Vec<Change<'_>> = sides.collect();
        if was_left {
            self.put_unchanged(&changes).await?;
        } else {
            let values: Vec<Value<'_>> = changes.iter().map(|change| (change.key, change.to)).collect();
            self.put(&values).await?;
        }
        self.note(entry).await?;
        let done = doc! { "$unset": { "pending": 1 }, "$set": { "rolled_back": is_back } };
        let statement = doc! { "q": { "_id": id }, "u": done };
        self.ask(Effect::Write, doc! { "update": PLANS, "updates": [statement] }).await.map(drop)
    }

    async fn note(&mut self, entry: Document) -> Result<()> {
        let number = entry.get_i64("_id").map_err(|_| corrupt_plan())?;
        self.upsert(AUDIT, number, entry).await?;
        let kept = i64::try_from(MAX_AUDIT_ENTRIES).unwrap_or(i64::MAX);
        self.delete(AUDIT, doc! { "_id": { "$lte": number - kept } }).await
    }

    /// Stores what an attempt comes to.
    async fn carry_out(
        &mut self,
        key: &Key,
        record: Option<(Document, bool)>,
        entry: Document,
    ) -> Result<()> {
        let Some((mut record, is_back)) = record else { return self.note(entry).await };
        record.insert("pending", doc! { "back": is_back, "entry": entry.clone() });
        let read = read_record(&record)?;
        // In a transaction nobody sees that it is pending.
        self.upsert(PLANS, key.as_str(), record).await?;
        self.finish(&read, is_back, key.as_str().into(), entry, false).await
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Another one made the same document.
fn already(error: Error) -> Result<()> {
    if error.kind() == ErrorKind::Conflict { Ok(()) } else { Err(error) }
}

fn concern(concern: &WriteConcern) -> Document {
    doc! { "w": "majority", "j": concern.journal.unwrap_or(true) }
}

#[cold]
fn busy() -> Error {
    Error::new(ErrorKind::Busy, "other plans are being applied")
}

#[cold]
fn wrong() -> Error {
    failure::unexpected_reply(Effect::Read)
}

fn read_record(found: &Document) -> Result<PlanRecord> {
    let wrong = |_| corrupt_plan();
    Ok(PlanRecord {
        payload: found.get_str("payload").map_err(wrong)?.parse().map_err(|_| corrupt_plan())?,
        mutations: found.get_i64("mutations").map_err(wrong)?.try_into().map_err(|_| corrupt_plan())?,
        stage: found.get_str("stage").ok().map(str::to_owned),
        // The server's times are compared with its own.
        applied: 0,
        expires: 0,
        is_rolled_back: found.get_bool("rolled_back").map_err(wrong)?,
        changes: decode_changes(found.get_str("changes").map_err(wrong)?.as_bytes())?,
    })
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
                let expired = doc! { "expires": { "$lte": turn.now }, "_id": { "$ne": key.as_str() } };
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
                let kept = found.filter(|_| matches!(step, RollbackStep::Restore)).map(|found| (found, true));
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
    async fn desk(&self, call: &Call<'_>) -> Result<Desk> {
        let waiting = self.server.plans.clone().lock_owned();
        let turn = timeout_at(call.deadline(), waiting).await.map_err(|_| busy())?;
        let lane = call.lease().await?;
        let seat = match lane.writable {
            Writable::Standalone => Seat::Alone(Box::new(call.ask(lane.client.start_session()).await?)),
            _ => Seat::Transaction(Some(Session::begin(call, &lane).await?)),
        };
        Ok(Desk { lane, seat, until: call.deadline(), _turn: turn })
    }

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

/// In turn, so that the plans of one store do not meet each other.
pub(super) type Plans = Arc<tokio::sync::Mutex<()>>;
