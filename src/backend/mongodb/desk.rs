//! Who speaks to the server about plans: in a transaction, or under the lease of a standalone server.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
    MongoDb, document, error,
    pool::Lease,
    server::{Call, no_reply},
    session::Session,
    topology::Writable,
    transaction::{Pauses, of_statement},
};
use crate::{
    ConfigValue, Error, ErrorKind, Key, Result,
    backend::remote::{Effect, batch},
    codec::{PlanRecord, corrupt_plan, decode_changes, is_same},
    plan::MAX_AUDIT_ENTRIES,
};

const CONFIGS: &str = "configs";
pub(super) const PLANS: &str = "plans";
pub(super) const AUDIT: &str = "plan_audit";

/// Holds one document, `{ _id: "plans" }`: the number of the last attempt, and on a standalone server who is at it.
const META: &str = "meta";

/// The most that a record may have: it is one document.
pub(super) const MAX_RECORD_BYTES: usize = 15 << 20;

/// After how long without a sign of life another one takes over what the holder of the lease left; how often it gives one; and
/// how long it goes on without.
const LEASE: Duration = Duration::from_secs(10);
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
const ALONE: Duration = Duration::from_secs(7);

/// Who speaks to the server: in a transaction, or under the lease of a standalone server.
pub(super) struct Desk {
    lane: Lease,
    pub(super) seat: Seat,
    /// No command is sent later.
    pub(super) until: Instant,
    /// In turn with the other plans of this store.
    _turn: OwnedMutexGuard<()>,
}

pub(super) enum Seat {
    /// Taken when it is committed.
    Transaction(Option<Session>),
    Alone(Box<Alone>),
}

/// On a standalone server.
pub(super) struct Alone {
    /// Only so that a cursor is read on where it began.
    session: ClientSession,
    /// The number of the attempt that holds the lease, and when it was last asked for.
    held: Option<(i64, Instant)>,
}

/// What an attempt is told by the document that all attempts change.
pub(super) struct Turn {
    pub(super) number: i64,
    pub(super) now: DateTime,
}

/// What one config value was, and becomes.
struct Change<'c> {
    key: &'c Key,
    from: Option<&'c ConfigValue>,
    to: Option<&'c ConfigValue>,
}

impl Desk {
    /// The answer to a command. None is sent when the time is over, or the lease is lost.
    async fn ask(&mut self, effect: Effect, command: Document) -> Result<Document> {
        if let Seat::Alone(alone) = &mut self.seat
            && let Some((number, _)) = alone.held.take_if(|(_, since)| since.elapsed() >= SIGN_OF_LIFE)
        {
            let asked = Instant::now();
            let lease = doc! { "$set": { "lease": { "$add": ["$$NOW", millis(LEASE)] } } };
            let change = doc! { "q": { "_id": PLANS, "number": number }, "u": [lease] };
            let answer = self.send(Effect::Write, doc! { "update": META, "updates": [change] }).await?;
            if !answer.get_i32("n").is_ok_and(|matched| matched == 1) {
                return Err(no_reply(effect));
            }
            self.hold(number, asked);
        }
        self.send(effect, command).await
    }

    /// The server's time began after it was asked.
    fn hold(&mut self, number: i64, asked: Instant) {
        self.until = asked + ALONE;
        if let Seat::Alone(alone) = &mut self.seat {
            alone.held = Some((number, asked));
        }
    }

    async fn send(&mut self, effect: Effect, mut command: Document) -> Result<Document> {
        if Instant::now() >= self.until {
            return Err(no_reply(effect));
        }
        let answer = match &mut self.seat {
            Seat::Transaction(session) => {
                let session = session.as_mut().ok_or_else(wrong)?;
                let sent = self.lane.database.run_command(command).session(session.driver()).await;
                sent.map_err(|error| of_statement(&error))?
            }
            Seat::Alone(alone) => {
                if effect == Effect::Write {
                    command.insert("writeConcern", concern(&self.lane.write_concern));
                }
                let sent = self.lane.database.run_command(command).session(&mut alone.session).await;
                sent.map_err(|error| error::of_request(&error, effect))?
            }
        };
        if let Some(refused) = answer.get_array("writeErrors").ok().and_then(|errors| errors.first()) {
            let code = refused.as_document().and_then(|error| error.get_i32("code").ok()).unwrap_or_default();
            return Err(error::of_code(code));
        }
        match error::of_write_concern(&answer) {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    /// Everything that a query finds.
    pub(super) async fn find(&mut self, collection: &str, filter: Document) -> Result<Vec<Document>> {
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

    pub(super) async fn delete(&mut self, collection: &str, filter: Document) -> Result<()> {
        let statement = doc! { "q": filter, "limit": 0 };
        self.ask(Effect::Write, doc! { "delete": collection, "deletes": [statement] }).await.map(drop)
    }

    /// Changes config values, in the order of their keys.
    async fn put(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let (sets, deletes): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.to.is_some());
        let statements = sets
            .iter()
            .filter_map(|change| Some((change.key, document::of_config(change.to?))))
            .map(|(key, body)| {
                let body = Document::try_from(&*body).map_err(document::damaged)?;
                Ok(doc! { "q": { "_id": key.as_str() }, "u": body, "upsert": true })
            })
            .collect::<Result<Vec<_>>>()?;
        for range in batch::chunks(&sets, |change| change.to.map_or(0, |value| value.to_json().len())) {
            let chunk = statements[range].to_vec();
            self.ask(Effect::Write, doc! { "update": CONFIGS, "updates": chunk }).await?;
        }
        for chunk in deletes.chunks(1000) {
            let keys: Vec<&str> = chunk.iter().map(|change| change.key.as_str()).collect();
            self.delete(CONFIGS, doc! { "_id": { "$in": keys } }).await?;
        }
        Ok(())
    }

    /// Changes the config values that are still what they were when that was decided, and leaves those that somebody changed
    /// since, as if that came after. Nothing locks them: so a value is changed only as it is found.
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
    pub(super) async fn look(&mut self, keys: &[&Key]) -> Result<BTreeMap<Key, ConfigValue>> {
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
    pub(super) async fn turn(&mut self, pauses: &mut Pauses) -> Result<Turn> {
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
                self.hold(number, asked);
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
    pub(super) async fn leave(&mut self, turn: &Turn) -> Result<()> {
        let change = doc! { "q": { "_id": PLANS, "number": turn.number }, "u": { "$unset": { "lease": 1 } } };
        self.ask(Effect::Write, doc! { "update": META, "updates": [change] }).await.map(drop)
    }

    /// Finishes what others began under the lease and did not finish.
    pub(super) async fn recover(&mut self) -> Result<()> {
        for left in self.find(PLANS, doc! { "pending.back": { "$exists": true } }).await? {
            let pending = left.get_document("pending").map_err(|_| corrupt_plan())?.clone();
            let record = read_record(&left)?;
            let is_back = pending.get_bool("back").map_err(|_| corrupt_plan())?;
            let id = left.get("_id").cloned().ok_or_else(corrupt_plan)?;
            let entry = pending.get_document("entry").map_err(|_| corrupt_plan())?.clone();
            self.finish(&record, is_back, id, entry).await?;
        }
        Ok(())
    }

    /// The second stage: the values, the audit, and that it is done. Doing it twice is doing it once.
    async fn finish(&mut self, record: &PlanRecord, is_back: bool, id: Bson, entry: Document) -> Result<()> {
        let sides = record.changes.iter().map(|change| {
            let (before, after) = (change.before.as_ref(), change.after.as_ref());
            let (from, to) = if is_back { (after, before) } else { (before, after) };
            Change { key: &change.key, from, to }
        });
        let changes: Vec<Change<'_>> = sides.collect();
        match self.seat {
            Seat::Transaction(_) => self.put(&changes).await?,
            Seat::Alone(_) => self.put_unchanged(&changes).await?,
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
    pub(super) async fn carry_out(
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
        self.finish(&read, is_back, key.as_str().into(), entry).await
    }
}

impl MongoDb {
    pub(super) async fn desk(&self, call: &Call<'_>) -> Result<Desk> {
        let waiting = self.server.plans.clone().lock_owned();
        let turn = timeout_at(call.deadline(), waiting).await.map_err(|_| busy())?;
        let lane = call.lease().await?;
        let seat = match lane.writable {
            Writable::Standalone => {
                let session = call.ask(lane.client.start_session()).await?;
                Seat::Alone(Box::new(Alone { session, held: None }))
            }
            _ => Seat::Transaction(Some(Session::begin(call, &lane).await?)),
        };
        Ok(Desk { lane, seat, until: call.deadline(), _turn: turn })
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
pub(super) fn busy() -> Error {
    Error::new(ErrorKind::Busy, "other plans are being applied")
}

#[cold]
pub(super) fn wrong() -> Error {
    error::unexpected_reply(Effect::Read)
}

pub(super) fn read_record(found: &Document) -> Result<PlanRecord> {
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

/// In turn, so that the plans of one store do not meet each other.
pub(super) type Plans = Arc<tokio::sync::Mutex<()>>;
