//! The commands of one attempt at a plan: in a transaction or, on a standalone server, under a lease.

use std::{collections::BTreeMap, time::Duration};

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
    MongoDb, command::any_of, document, error, pool::Permit, server::Call, session::Session,
    topology::Writable,
};
use crate::{
    ConfigValue, Error, ErrorKind, Key, Result,
    backend::remote::{Effect, backoff::Backoff, batch, busy, reply_timeout},
    codec::{PlanRecord, corrupt_plan, decode_changes, is_same},
    plan::MAX_AUDIT_ENTRIES,
};

const CONFIGS: &str = "configs";
pub(super) const PLANS: &str = "plans";
pub(super) const AUDIT: &str = "plan_audit";

/// Holds a document for plans, `{ _id: "plans" }`: the last attempt's number and the lease.
const META: &str = "meta";

/// The largest record: it is stored in one document.
pub(super) const MAX_RECORD_BYTES: usize = 15 << 20;

/// How long a lease is valid without renewal. Then another attempt may take it.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// The age at which the next command renews the lease first.
const RENEW_AFTER: Duration = Duration::from_secs(2);
/// How long commands are sent after the last renewal. The rest of the lease is for the last command to reach
/// the server.
const MAX_UNRENEWED: Duration = Duration::from_secs(7);

/// Sends the commands of one attempt at a plan.
pub(super) struct PlanSession {
    permit: Permit,
    pub(super) mode: Mode,
    /// No command is sent later.
    pub(super) until: Instant,
    /// Keeps other plans of this handle waiting.
    _guard: OwnedMutexGuard<()>,
}

pub(super) enum Mode {
    /// None once it is committed.
    Transaction(Option<Session>),
    Standalone(Box<Standalone>),
}

pub(super) struct Standalone {
    /// Makes the driver read a cursor on from the server that opened it.
    session: ClientSession,
    /// The number of the attempt that holds the lease, and when its last renewal was sent.
    lease: Option<(i64, Instant)>,
}

/// The number of an attempt, and the server's time at its start.
pub(super) struct AttemptStart {
    pub(super) number: i64,
    pub(super) now: DateTime,
}

/// The old and new value of one config key.
struct Change<'c> {
    key: &'c Key,
    from: Option<&'c ConfigValue>,
    to: Option<&'c ConfigValue>,
}

impl PlanSession {
    /// Runs a command; renews the lease first if it is due. Once it is lost, nothing is sent.
    async fn run(&mut self, effect: Effect, command: Document) -> Result<Document> {
        if let Mode::Standalone(standalone) = &mut self.mode
            && let Some((number, _)) = standalone.lease.take_if(|(_, since)| since.elapsed() >= RENEW_AFTER)
        {
            let sent_at = Instant::now();
            let lease = doc! { "$set": { "lease": { "$add": ["$$NOW", millis(LEASE_TTL)] } } };
            let change = doc! { "q": { "_id": PLANS, "number": number }, "u": [lease] };
            let reply = self.send(Effect::Write, doc! { "update": META, "updates": [change] }).await?;
            if !reply.get_i32("n").is_ok_and(|matched| matched == 1) {
                return Err(reply_timeout(error::SERVER, effect));
            }
            self.renewed(number, sent_at);
        }
        self.send(effect, command).await
    }

    /// The lease is counted from before its renewal was sent: on the server it begins later.
    fn renewed(&mut self, number: i64, sent_at: Instant) {
        self.until = sent_at + MAX_UNRENEWED;
        if let Mode::Standalone(standalone) = &mut self.mode {
            standalone.lease = Some((number, sent_at));
        }
    }

    async fn send(&mut self, effect: Effect, mut command: Document) -> Result<Document> {
        if Instant::now() >= self.until {
            return Err(reply_timeout(error::SERVER, effect));
        }
        let reply = match &mut self.mode {
            Mode::Transaction(session) => {
                let session = session.as_mut().ok_or_else(unexpected)?;
                let sent = self.permit.database.run_command(command).session(session.driver()).await;
                sent.map_err(|error| error::of_statement(&error))?
            }
            Mode::Standalone(standalone) => {
                if effect == Effect::Write {
                    command.insert("writeConcern", majority(&self.permit.write_concern));
                }
                let sent = self.permit.database.run_command(command).session(&mut standalone.session).await;
                sent.map_err(|error| error::of_request(&error, effect))?
            }
        };
        if let Some(refused) = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()) {
            let code = refused.as_document().and_then(|error| error.get_i32("code").ok()).unwrap_or_default();
            return Err(error::of_code(code));
        }
        match error::of_write_concern(&reply) {
            Some(error) => Err(error),
            None => Ok(reply),
        }
    }

    /// All documents that match a filter.
    pub(super) async fn find(&mut self, collection: &str, filter: Document) -> Result<Vec<Document>> {
        let mut reply = self.run(Effect::Read, doc! { "find": collection, "filter": filter }).await?;
        let mut found = Vec::new();
        loop {
            let cursor = reply.get_document("cursor").map_err(|_| unexpected())?;
            let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch"));
            for item in batch.map_err(|_| unexpected())? {
                found.push(item.as_document().ok_or_else(unexpected)?.clone());
            }
            match cursor.get_i64("id").map_err(|_| unexpected())? {
                0 => return Ok(found),
                id => {
                    let more = doc! { "getMore": id, "collection": collection };
                    reply = self.run(Effect::Read, more).await?;
                }
            }
        }
    }

    async fn upsert(&mut self, collection: &str, id: impl Into<Bson>, change: Document) -> Result<()> {
        self.update(collection, vec![doc! { "q": { "_id": id.into() }, "u": change, "upsert": true }]).await
    }

    async fn update(&mut self, collection: &str, statements: Vec<Document>) -> Result<()> {
        self.run(Effect::Write, doc! { "update": collection, "updates": statements }).await.map(drop)
    }

    pub(super) async fn delete(&mut self, collection: &str, filter: Document) -> Result<()> {
        let statement = doc! { "q": filter, "limit": 0 };
        self.run(Effect::Write, doc! { "delete": collection, "deletes": [statement] }).await.map(drop)
    }

    /// Changes config values in a transaction.
    async fn put(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let (sets, deletes): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.to.is_some());
        let statements = sets
            .iter()
            .filter_map(|change| Some((change.key, document::from_config(change.to?))))
            .map(|(key, body)| {
                let body = Document::try_from(&*body).map_err(document::damaged)?;
                Ok(doc! { "q": { "_id": key.as_str() }, "u": body, "upsert": true })
            })
            .collect::<Result<Vec<_>>>()?;
        for range in batch::chunks(&sets, |change| change.to.map_or(0, |value| value.to_json().len())) {
            self.update(CONFIGS, statements[range].to_vec()).await?;
        }
        for chunk in deletes.chunks(1000) {
            self.delete(CONFIGS, any_of(chunk.iter().map(|change| change.key))).await?;
        }
        Ok(())
    }

    /// Changes config values on a standalone server, without locks. A value that was changed since the
    /// attempt read it stays, as if that change came after the plan: each command matches the value as found.
    async fn put_unchanged(&mut self, changes: &[Change<'_>]) -> Result<()> {
        for chunk in changes.chunks(1000) {
            let keys: Vec<&Key> = chunk.iter().map(|change| change.key).collect();
            let found = self.stored(&keys).await?;
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
                let body = to.map(|value| Document::try_from(&*document::from_config(value)));
                match (found, body.transpose().map_err(document::damaged)?) {
                    (Some((as_found, _)), Some(body)) => {
                        updates.push(doc! { "q": as_found.clone(), "u": body });
                    }
                    (None, Some(body)) => {
                        let insert = doc! { "$setOnInsert": body };
                        updates.push(doc! { "q": { "_id": key.as_str() }, "u": insert, "upsert": true });
                    }
                    (Some((as_found, _)), None) => deletes.push(doc! { "q": as_found.clone(), "limit": 1 }),
                    (None, None) => {}
                }
            }
            let bytes = |statement: &Document| {
                RawDocumentBuf::try_from(statement).map_or(0, |raw| raw.as_bytes().len())
            };
            for range in batch::chunks(&updates, bytes) {
                self.update(CONFIGS, updates[range].to_vec()).await?;
            }
            for range in batch::chunks(&deletes, bytes) {
                self.run(Effect::Write, doc! { "delete": CONFIGS, "deletes": deletes[range].to_vec() })
                    .await?;
            }
        }
        Ok(())
    }

    pub(super) async fn configs(&mut self, keys: &[&Key]) -> Result<BTreeMap<Key, ConfigValue>> {
        let stored = self.stored(keys).await?;
        Ok(stored.into_iter().map(|(key, (_, value))| (key, value)).collect())
    }

    /// The stored documents of some keys, and their values.
    async fn stored(&mut self, keys: &[&Key]) -> Result<BTreeMap<Key, (Document, ConfigValue)>> {
        let mut stored = BTreeMap::new();
        for chunk in keys.chunks(1000) {
            for document in self.find(CONFIGS, any_of(chunk.iter().copied())).await? {
                let raw = RawDocumentBuf::try_from(&document).map_err(document::damaged)?;
                let key = document::key(&raw)?;
                let value = document::config(&key, &raw)?;
                stored.insert(key, (document, value));
            }
        }
        Ok(stored)
    }

    /// Takes the next number, and the lease on a standalone server. Transactions that do so concurrently
    /// conflict.
    pub(super) async fn start(&mut self, backoff: &mut Backoff) -> Result<AttemptStart> {
        let next = doc! { "$add": [{ "$ifNull": ["$number", 0_i64] }, 1_i64] };
        let mut fields = doc! { "number": next, "now": "$$NOW" };
        let is_standalone = matches!(self.mode, Mode::Standalone(_));
        let mut query = doc! { "_id": PLANS };
        if is_standalone {
            fields.insert("lease", doc! { "$add": ["$$NOW", millis(LEASE_TTL)] });
            query.insert("$expr", doc! { "$lte": ["$lease", "$$NOW"] });
        }
        loop {
            let sent_at = Instant::now();
            let take = doc! {
                "findAndModify": META, "query": query.clone(), "update": [{ "$set": fields.clone() }],
                "upsert": !is_standalone, "new": true,
            };
            let reply = self.run(Effect::Write, take).await?;
            if let Ok(taken) = reply.get_document("value") {
                let number = taken.get_i64("number").map_err(|_| unexpected())?;
                let now = *taken.get_datetime("now").map_err(|_| unexpected())?;
                self.renewed(number, sent_at);
                return Ok(AttemptStart { number, now });
            }
            // Another attempt holds the lease, or the document does not exist yet.
            let insert = doc! { "$setOnInsert": { "number": 0_i64 } };
            self.upsert(META, PLANS, insert).await.or_else(ignore_conflict)?;
            if !backoff.pause().await {
                return Err(busy());
            }
        }
    }

    pub(super) async fn release_lease(&mut self, start: &AttemptStart) -> Result<()> {
        let query = doc! { "_id": PLANS, "number": start.number };
        self.update(META, vec![doc! { "q": query, "u": { "$unset": { "lease": 1 } } }]).await
    }

    /// Finishes attempts whose process died after their first stage.
    pub(super) async fn finish_pending(&mut self) -> Result<()> {
        for found in self.find(PLANS, doc! { "pending.back": { "$exists": true } }).await? {
            let pending = found.get_document("pending").map_err(|_| corrupt_plan())?.clone();
            let record = read_record(&found)?;
            let is_rollback = pending.get_bool("back").map_err(|_| corrupt_plan())?;
            let id = found.get("_id").cloned().ok_or_else(corrupt_plan)?;
            let entry = pending.get_document("entry").map_err(|_| corrupt_plan())?.clone();
            self.finish(&record, is_rollback, id, entry).await?;
        }
        Ok(())
    }

    /// The second stage, which is idempotent: writes values and audit entry, and marks the record as done.
    async fn finish(
        &mut self,
        record: &PlanRecord,
        is_rollback: bool,
        id: Bson,
        entry: Document,
    ) -> Result<()> {
        let changes = record.changes.iter().map(|change| {
            let (before, after) = (change.before.as_ref(), change.after.as_ref());
            let (from, to) = if is_rollback { (after, before) } else { (before, after) };
            Change { key: &change.key, from, to }
        });
        let changes: Vec<Change<'_>> = changes.collect();
        match self.mode {
            Mode::Transaction(_) => self.put(&changes).await?,
            Mode::Standalone(_) => self.put_unchanged(&changes).await?,
        }
        self.write_audit(entry).await?;
        let done = doc! { "$unset": { "pending": 1 }, "$set": { "rolled_back": is_rollback } };
        self.update(PLANS, vec![doc! { "q": { "_id": id }, "u": done }]).await
    }

    async fn write_audit(&mut self, entry: Document) -> Result<()> {
        let number = entry.get_i64("_id").map_err(|_| corrupt_plan())?;
        self.upsert(AUDIT, number, entry).await?;
        let kept = i64::try_from(MAX_AUDIT_ENTRIES).unwrap_or(i64::MAX);
        self.delete(AUDIT, doc! { "_id": { "$lte": number - kept } }).await
    }

    /// Writes the record, if the attempt changes something (true: a rollback), the values and the audit
    /// entry.
    pub(super) async fn write(
        &mut self,
        key: &Key,
        record: Option<(Document, bool)>,
        entry: Document,
    ) -> Result<()> {
        let Some((mut record, is_rollback)) = record else { return self.write_audit(entry).await };
        record.insert("pending", doc! { "back": is_rollback, "entry": entry.clone() });
        let read = read_record(&record)?;
        // In a transaction no reader sees `pending`.
        self.upsert(PLANS, key.as_str(), record).await?;
        self.finish(&read, is_rollback, key.as_str().into(), entry).await
    }
}

impl MongoDb {
    pub(super) async fn plan_session(&self, call: &Call<'_>) -> Result<PlanSession> {
        let lock = self.server.plans.clone().lock_owned();
        let guard = timeout_at(call.deadline, lock).await.map_err(|_| busy())?;
        let permit = call.permit().await?;
        let mode = match permit.writable {
            Writable::Standalone => {
                let session = call.ask(permit.client.start_session()).await?;
                Mode::Standalone(Box::new(Standalone { session, lease: None }))
            }
            _ => Mode::Transaction(Some(call.ask(permit.begin_transaction()).await?)),
        };
        Ok(PlanSession { permit, mode, until: call.deadline, _guard: guard })
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A conflict here means that a concurrent attempt created the document.
fn ignore_conflict(error: Error) -> Result<()> {
    if error.kind() == ErrorKind::Conflict { Ok(()) } else { Err(error) }
}

fn majority(concern: &WriteConcern) -> Document {
    doc! { "w": "majority", "j": concern.journal.unwrap_or(true) }
}

#[cold]
pub(super) fn unexpected() -> Error {
    error::unexpected_reply(Effect::Read)
}

pub(super) fn read_record(found: &Document) -> Result<PlanRecord> {
    let corrupt = |_| corrupt_plan();
    Ok(PlanRecord {
        payload: found.get_str("payload").map_err(corrupt)?.parse().map_err(|_| corrupt_plan())?,
        mutations: found.get_i64("mutations").map_err(corrupt)?.try_into().map_err(|_| corrupt_plan())?,
        stage: found.get_str("stage").ok().map(str::to_owned),
        // Plans on MongoDB compare these times on the server.
        applied: 0,
        expires: 0,
        is_rolled_back: found.get_bool("rolled_back").map_err(corrupt)?,
        changes: decode_changes(found.get_str("changes").map_err(corrupt)?.as_bytes())?,
    })
}
