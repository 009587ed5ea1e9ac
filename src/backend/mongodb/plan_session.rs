//! The commands of one attempt at a plan: in a transaction or, on a standalone server, under a lease.

use std::{collections::BTreeMap, time::Duration};

use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout_at},
};

use super::{
    MongoDb,
    command::any_of,
    document, error,
    lease::{self, Claimed},
    pool::Permit,
    server::Call,
    session::Session,
};
use crate::{
    ConfigValue, Error, Key, Outcome, Result,
    backend::remote::{Backoff, Effect, batch, busy, reply_timeout},
    codec::{PlanChange, PlanRecord, corrupt_plan, decode_changes, is_same},
    model::Holder,
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
    /// Has a transaction, unless the server is standalone. Then it makes the driver read a cursor on in the
    /// session that opened it.
    pub(super) session: Session,
    /// On a standalone server: the lease of this attempt.
    lease: Option<Held>,
    /// No command is sent later.
    pub(super) until: Instant,
    /// Keeps other plans of this handle waiting.
    _guard: OwnedMutexGuard<()>,
}

/// The lease of an attempt.
struct Held {
    holder: Holder,
    number: i64,
    /// When its claim or last renewal was sent.
    sent_at: Instant,
}

/// The number of an attempt, and the server's time at its start.
pub(super) struct AttemptStart {
    pub(super) number: i64,
    pub(super) now: DateTime,
}

/// The stored documents of config keys, and their values.
pub(super) type Stored = BTreeMap<Key, (Document, ConfigValue)>;

impl PlanSession {
    /// Runs a command; renews the lease first if it is due. Once it is lost, nothing is sent.
    async fn run(&mut self, effect: Effect, command: Document) -> Result<Document> {
        if let Some(held) = self.lease.take_if(|held| held.sent_at.elapsed() >= RENEW_AFTER) {
            let sent_at = Instant::now();
            let renew = lease::renew(PLANS, &held.holder, held.number, millis(LEASE_TTL)).command(META);
            let reply = self.send(Effect::Write, renew).await?;
            if reply.get_document("value").is_err() {
                return Err(reply_timeout(error::SERVER, effect));
            }
            self.holds(Held { sent_at, ..held });
        }
        self.send(effect, command).await
    }

    /// The lease is counted from before its renewal was sent: on the server it begins later.
    fn holds(&mut self, held: Held) {
        self.until = held.sent_at + MAX_UNRENEWED;
        self.lease = Some(held);
    }

    pub(super) fn is_standalone(&self) -> bool {
        !self.permit.writable.has_transactions()
    }

    async fn send(&mut self, effect: Effect, mut command: Document) -> Result<Document> {
        if Instant::now() >= self.until {
            return Err(reply_timeout(error::SERVER, effect));
        }
        let is_standalone = self.is_standalone();
        if is_standalone && effect == Effect::Write {
            let journal = self.permit.write_concern.journal.unwrap_or(true);
            command.insert("writeConcern", doc! { "w": "majority", "j": journal });
        }
        let sent = self.permit.database.run_command(command).session(self.session.driver()).await;
        let reply = sent.map_err(|error| match is_standalone {
            true => error::of_request(&error, effect),
            false => error::of_statement(&error),
        })?;
        if let Some(error) = error::of_write_error(&reply) {
            return Err(error.with_outcome(Outcome::NotApplied));
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

    /// Makes the changes of a plan or of its rollback. A value that was changed since it was read, which only
    /// a standalone server allows, stays, as if that change came after the plan: each statement matches the
    /// document as found.
    async fn put(&mut self, changes: &[PlanChange], is_rollback: bool, stored: &Stored) -> Result<()> {
        let (mut updates, mut deletes) = (Vec::new(), Vec::new());
        for PlanChange { key, before, after } in changes {
            let (from, to) = if is_rollback { (after, before) } else { (before, after) };
            let found = stored.get(key);
            let is = |wanted: &Option<ConfigValue>| match (wanted, found) {
                (Some(wanted), Some((_, value))) => is_same(wanted, value),
                (wanted, found) => wanted.is_none() && found.is_none(),
            };
            if is(to) || !is(from) {
                continue;
            }
            let query = found.map_or_else(|| doc! { "_id": key.as_str() }, |(as_found, _)| as_found.clone());
            let Some(value) = to else {
                deletes.push(doc! { "q": query, "limit": 1 });
                continue;
            };
            let body = Document::try_from(&*document::from_config(value)).map_err(document::damaged)?;
            updates.push(match found {
                Some(_) => doc! { "q": query, "u": body },
                None => doc! { "q": query, "u": { "$setOnInsert": body }, "upsert": true },
            });
        }
        let bytes =
            |statement: &Document| RawDocumentBuf::try_from(statement).map_or(0, |raw| raw.as_bytes().len());
        for (command, list, statements) in [("update", "updates", updates), ("delete", "deletes", deletes)] {
            for range in batch::chunks(&statements, bytes) {
                let command = doc! { command: CONFIGS, list: statements[range].to_vec() };
                self.run(Effect::Write, command).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn stored(&mut self, keys: &[&Key]) -> Result<Stored> {
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
        if self.is_standalone() {
            return self.claim_lease(backoff).await;
        }
        let next = doc! { "$add": [{ "$ifNull": ["$number", 0_i64] }, 1_i64] };
        let take = doc! {
            "findAndModify": META, "query": { "_id": PLANS }, "update": [{ "$set": { "number": next, "now": "$$NOW" } }],
            "upsert": true, "new": true,
        };
        let sent_at = Instant::now();
        let reply = self.send(Effect::Write, take).await?;
        let taken = reply.get_document("value").map_err(|_| unexpected())?;
        let number = taken.get_i64("number").map_err(|_| unexpected())?;
        let now = *taken.get_datetime("now").map_err(|_| unexpected())?;
        self.until = sent_at + MAX_UNRENEWED;
        Ok(AttemptStart { number, now })
    }

    async fn claim_lease(&mut self, backoff: &mut Backoff) -> Result<AttemptStart> {
        let holder = Holder::random();
        loop {
            let sent_at = Instant::now();
            // The audit forgets entries by these numbers, so they count attempts and are not the clock.
            let claim = lease::claim(PLANS, &holder, millis(LEASE_TTL), 0_i64).command(META);
            let reply = self.send(Effect::Write, claim).await?;
            let found = reply.get_document("value").map_err(|_| unexpected())?;
            if let Claimed::Yours { number, now } = lease::claimed(found, &holder)? {
                self.holds(Held { holder, number, sent_at });
                return Ok(AttemptStart { number, now });
            }
            if !backoff.pause().await {
                return Err(busy());
            }
        }
    }

    /// Ends the lease, if there is one.
    pub(super) async fn release_lease(&mut self) -> Result<()> {
        let Some(Held { holder, number, .. }) = self.lease.take() else { return Ok(()) };
        let release = lease::release(PLANS, &holder, number, 0).command(META);
        self.send(Effect::Write, release).await.map(drop)
    }

    /// Finishes attempts whose process died after their first stage.
    pub(super) async fn finish_pending(&mut self) -> Result<()> {
        for found in self.find(PLANS, doc! { "pending.back": { "$exists": true } }).await? {
            let pending = found.get_document("pending").map_err(|_| corrupt_plan())?.clone();
            let record = read_record(&found)?;
            let is_rollback = pending.get_bool("back").map_err(|_| corrupt_plan())?;
            let id = found.get("_id").cloned().ok_or_else(corrupt_plan)?;
            let entry = pending.get_document("entry").map_err(|_| corrupt_plan())?.clone();
            let stored = self.stored(&changed_keys(&record)).await?;
            self.finish(&record, is_rollback, &stored, id, entry).await?;
        }
        Ok(())
    }

    /// The second stage, which is idempotent: writes values and audit entry, and marks the record as done.
    async fn finish(
        &mut self,
        record: &PlanRecord,
        is_rollback: bool,
        stored: &Stored,
        id: Bson,
        entry: Document,
    ) -> Result<()> {
        self.put(&record.changes, is_rollback, stored).await?;
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
        stored: &Stored,
        entry: Document,
    ) -> Result<()> {
        let Some((mut record, is_rollback)) = record else { return self.write_audit(entry).await };
        record.insert("pending", doc! { "back": is_rollback, "entry": entry.clone() });
        let read = read_record(&record)?;
        // In a transaction no reader sees `pending`.
        self.upsert(PLANS, key.as_str(), record).await?;
        self.finish(&read, is_rollback, stored, key.as_str().into(), entry).await
    }
}

impl MongoDb {
    pub(super) async fn plan_session(&self, call: &Call<'_>) -> Result<PlanSession> {
        let lock = self.server.plans.clone().lock_owned();
        let guard = timeout_at(call.deadline, lock).await.map_err(|_| busy())?;
        let permit = call.permit().await?;
        let session = call.ask(permit.begin_session()).await?;
        Ok(PlanSession { permit, session, lease: None, until: call.deadline, _guard: guard })
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cold]
pub(super) fn unexpected() -> Error {
    error::unexpected_reply(Effect::Read)
}

pub(super) fn value_in(stored: &Stored, key: &Key) -> Option<ConfigValue> {
    stored.get(key).map(|(_, value)| value.clone())
}

pub(super) fn changed_keys(record: &PlanRecord) -> Vec<&Key> {
    record.changes.iter().map(|change| &change.key).collect()
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
