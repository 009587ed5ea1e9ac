//! Plans: optimistic transactions on keys of one slot.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use futures_core::Stream;
use redis::{Cmd, Value, cmd};
use tokio::{sync::MutexGuard, time::timeout_at};

use super::{
    Redis,
    cluster::{self, MAX_REDIRECTS},
    config, error,
    exchange::Exchange,
    exclusive::ExclusiveLease,
    node::Node,
    reply,
    server::Call,
};
use crate::{
    Backend, ConfigBatch, ConfigValue, Error, Key, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, last_mutations, rollback_step},
        remote::{
            Effect,
            audit::{self, Page},
            backoff::{Backoff, SHORT_PAUSE},
            busy,
        },
    },
    codec::{PlanChange, PlanRecord, corrupt_plan, decode_key, encode_config, times},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, MAX_AUDIT_ENTRIES, Plan, PlanAction,
        PlanRefusal, Rollback, RollbackOptions,
    },
};

/// How many audit entries are read at a time.
const PAGE: usize = 500;

/// Stored texts of config values.
type Texts = BTreeMap<Key, Option<Vec<u8>>>;

/// The fields of a plan's record that are not about a single config value.
const PAYLOAD: &str = ":payload";
const MUTATIONS: &str = ":mutations";
const STAGE: &str = ":stage";
const ROLLED_BACK: &str = ":rolled_back";

/// The prefixes of the fields that hold the texts from before the plan and after it.
const BEFORE: u8 = b'b';
const AFTER: u8 = b'a';

/// A plan's record and the texts from before the plan.
struct Found {
    record: PlanRecord,
    before: Texts,
}

/// A value in a plan's record: `+` and the text, or `-` for none.
fn optional(text: Option<&[u8]>) -> Vec<u8> {
    text.map_or_else(|| b"-".to_vec(), |text| [b"+", text].concat())
}

fn text_of(value: &[u8]) -> Result<Option<Vec<u8>>> {
    match value.split_first() {
        Some((b'+', text)) => Ok(Some(text.to_vec())),
        Some((b'-', [])) => Ok(None),
        _ => Err(corrupt_plan()),
    }
}

fn values_of(texts: &Texts) -> Result<BTreeMap<&Key, ConfigValue>> {
    let values = texts.iter().filter_map(|(key, text)| Some((key, text.as_ref()?)));
    values.map(|(key, text)| Ok((key, config::read(key, text)?))).collect()
}

/// Reads the record of a plan. Redis has no empty hashes.
fn read_record(fields: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Option<Found>> {
    if fields.is_empty() {
        return Ok(None);
    }
    let (mut about, mut before, mut after) = (HashMap::new(), Texts::new(), Texts::new());
    for (name, value) in fields {
        match name.split_first() {
            Some((&BEFORE, key)) => drop(before.insert(decode_key(key)?, text_of(&value)?)),
            Some((&AFTER, key)) => drop(after.insert(decode_key(key)?, text_of(&value)?)),
            _ => drop(about.insert(name, String::from_utf8(value).map_err(|_| corrupt_plan())?)),
        }
    }
    let named = |name: &str| about.get(name.as_bytes()).ok_or_else(corrupt_plan);
    let change = |(key, after): (&Key, &Option<Vec<u8>>)| {
        let after = after.as_ref().map(|text| config::read(key, text)).transpose()?;
        // The text from before the plan is restored as it was.
        Ok(PlanChange { key: key.clone(), before: None, after })
    };
    let record = PlanRecord {
        payload: named(PAYLOAD)?.parse().map_err(|_| corrupt_plan())?,
        mutations: named(MUTATIONS)?.parse().map_err(|_| corrupt_plan())?,
        stage: named(STAGE).ok().filter(|stage| !stage.is_empty()).cloned(),
        // The server deletes an expired record.
        applied: 0,
        expires: i64::MAX,
        is_rolled_back: about.contains_key(ROLLED_BACK.as_bytes()),
        changes: after.iter().map(change).collect::<Result<_>>()?,
    };
    Ok(Some(Found { record, before }))
}

/// A transaction on a connection that watches the config hash, the plan's record and the audit: it is applied
/// only if none of them has changed since they were read.
struct Transaction<'t> {
    redis: &'t Redis,
    call: &'t Call<'t>,
    node: Arc<Node>,
    connection: Option<ExclusiveLease>,
    /// The name of the plan's record.
    plan: String,
    found: Option<Found>,
}

impl<'t> Transaction<'t> {
    /// Watches the keys and reads the plan's record; and in the same round trip what `more` reads. Returns
    /// the replies to those commands.
    async fn begin(
        redis: &'t Redis,
        call: &'t Call<'t>,
        key: &Key,
        more: Vec<Cmd>,
    ) -> Result<(Self, Vec<Value>)> {
        let names = [redis.layout.config(), redis.layout.plan(key), redis.layout.audit()];
        let mut commands = vec![cmd("WATCH").arg(&names).take()];
        commands.extend(names.iter().map(|name| cmd("TYPE").arg(name).take()));
        commands.push(cmd("HGETALL").arg(&names[1]).take());
        let own = commands.len();
        commands.extend(more);
        let [config, plan, _] = names;
        let mut node = call.owner(&config)?;
        for _ in 0..MAX_REDIRECTS {
            let mut connection = None;
            let exchange = Exchange { begins_transaction: true, ..call.exchange(&node, Effect::Read, true) };
            let mut replies =
                exchange.exchange_on(&mut connection, &exchange.pipeline(commands.clone())).await?;
            let rest = replies.split_off(own.min(replies.len()));
            let (Some(record), Some(watched)) = (replies.pop(), replies.first()) else { break };
            match call.moved(watched, &node)? {
                Some(owner) => node = owner,
                None => {
                    for (reply, wanted) in replies.into_iter().zip(["OK", "hash", "hash", "stream"]) {
                        check_type(reply::checked(reply)?, wanted)?;
                    }
                    let found = read_record(reply::fields(reply::checked(record)?)?)?;
                    return Ok((Self { redis, call, node, connection, plan, found }, rest));
                }
            }
        }
        Err(cluster::too_many_redirects())
    }

    fn record(&self) -> Option<&PlanRecord> {
        self.found.as_ref().map(|found| &found.record)
    }

    async fn send(&mut self, commands: Vec<Cmd>) -> Result<Vec<Value>> {
        let exchange = self.call.exchange(&self.node, Effect::Read, true);
        exchange.exchange_on(&mut self.connection, &exchange.pipeline(commands)).await
    }

    /// Applies all of the commands and adds the audit entry, or does nothing: false if a key has changed.
    async fn commit(
        mut self,
        attempt: &Attempt<'_>,
        status: AuditStatus,
        refusal: Option<PlanRefusal>,
        commands: Vec<Cmd>,
    ) -> Result<bool> {
        let entry = self.redis.audit_entry(attempt, status, refusal);
        // An attempt that changes nothing only leaves its entry, which no other change conflicts with.
        let changes_something = !commands.is_empty();
        let transaction = match changes_something {
            true => [entry].into_iter().chain(commands).chain([cmd("EXEC")]).collect(),
            false => vec![cmd("DISCARD"), entry],
        };
        let exchange = self.call.exchange(&self.node, Effect::Write, true);
        let replies = exchange.exchange_on(&mut self.connection, &exchange.pipeline(transaction)).await?;
        let mut results = exchange.replies(replies);
        let executed = results.pop().unwrap_or_else(|| Err(unknown_status()))?;
        // A command that was refused before EXEC says why nothing was applied.
        results.into_iter().filter_map(Result::ok).try_for_each(|reply| reply::checked(reply).map(drop))?;
        let is_committed = match reply::checked(executed)? {
            Value::Nil if changes_something => false,
            Value::BulkString(_) if !changes_something => true,
            Value::Array(applied) if !applied.iter().any(|reply| matches!(reply, Value::ServerError(_))) => {
                true
            }
            _ => return Err(unknown_status()),
        };
        if let Some(lease) = &mut self.connection {
            lease.in_transaction = false;
        }
        Ok(is_committed)
    }
}

/// The attempts of one plan until no other change to the store conflicts with it. Those of other plans of
/// this store wait.
struct Attempts<'s> {
    call: Call<'s>,
    backoff: Backoff,
    _turn: MutexGuard<'s, ()>,
}

impl Attempts<'_> {
    async fn pause(&mut self) -> Result<()> {
        if self.backoff.pause().await { Ok(()) } else { Err(busy()) }
    }
}

fn check_type(reply: Value, wanted: &str) -> Result<()> {
    match reply {
        Value::Okay => Ok(()),
        Value::SimpleString(found) if found == wanted || found == "none" => Ok(()),
        _ => Err(error::of_code("WRONGTYPE", "")),
    }
}

/// Reads the texts of config values, and begins to queue commands: if MULTI failed, they would be applied one
/// by one, so its reply must be known before they are sent.
fn read_and_queue(config: &str, keys: &[Key]) -> Vec<Cmd> {
    let get = (!keys.is_empty()).then(|| config::query(config, keys));
    get.into_iter().chain([cmd("MULTI")]).collect()
}

/// The texts in the replies to [`read_and_queue`].
fn texts_in(mut replies: Vec<Value>, keys: Vec<Key>) -> Result<Texts> {
    reply::done(replies.pop().ok_or_else(unknown_status)?)?;
    let Some(texts) = replies.pop() else { return Ok(Texts::new()) };
    let texts = reply::list(texts)?.into_iter().map(reply::bytes).collect::<Result<Vec<_>>>()?;
    Ok(keys.into_iter().zip(texts).collect())
}

/// The commands that set config values, or delete those without a text.
fn set_configs<'t>(config: &str, texts: impl Iterator<Item = (&'t Key, Option<&'t [u8]>)>) -> Vec<Cmd> {
    let [mut set, mut delete] = ["HSET", "HDEL"].map(|name| cmd(name).arg(config).take());
    for (key, text) in texts {
        match text {
            Some(text) => set.arg(key.as_str()).arg(text),
            None => delete.arg(key.as_str()),
        };
    }
    // Redis refuses these commands without a field.
    [set, delete].into_iter().filter(|command| command.args_iter().count() > 2).collect()
}

impl Redis {
    fn audit_entry(&self, attempt: &Attempt<'_>, status: AuditStatus, refusal: Option<PlanRefusal>) -> Cmd {
        let mut add = cmd("XADD");
        add.arg(self.layout.audit()).arg("MAXLEN").arg(MAX_AUDIT_ENTRIES).arg("*");
        add.arg("key").arg(attempt.key.as_str()).arg("action").arg(attempt.action.as_str());
        add.arg("status").arg(status.as_str()).arg("stage").arg(attempt.stage.unwrap_or_default());
        add.arg("source").arg(attempt.source.unwrap_or_default()).arg("micros").arg(attempt.micros());
        add.arg("mutations").arg(attempt.mutations);
        add.arg("payload").arg(attempt.payload.map(|payload| payload.to_string()).unwrap_or_default());
        add.arg("error").arg(refusal.map_or("", |refusal| refusal.as_str())).take()
    }

    /// The commands that change the config values and store the plan's record.
    fn change(
        &self,
        name: &str,
        attempt: &Attempt<'_>,
        ttl: u64,
        before: &Texts,
        changes: &[PlanChange],
    ) -> Vec<Cmd> {
        let mut record = cmd("HSET");
        record
            .arg(name)
            .arg(PAYLOAD)
            .arg(attempt.payload.map(|payload| payload.to_string()).unwrap_or_default());
        record.arg(MUTATIONS).arg(attempt.mutations).arg(STAGE).arg(attempt.stage.unwrap_or_default());
        let mut after = Vec::with_capacity(changes.len());
        for change in changes {
            let (key, text) = (&change.key, change.after.as_ref().map(encode_config));
            let before = before.get(key).and_then(Option::as_deref);
            record.arg([&[BEFORE], key.as_str().as_bytes()].concat()).arg(optional(before));
            record.arg([&[AFTER], key.as_str().as_bytes()].concat()).arg(optional(text.as_deref()));
            after.push((key, text));
        }
        let mut commands = vec![record, cmd("PEXPIRE").arg(name).arg(ttl).take()];
        let after = after.iter().map(|(key, text)| (*key, text.as_deref()));
        commands.extend(set_configs(&self.layout.config(), after));
        commands
    }

    async fn attempts(&self) -> Result<Attempts<'_>> {
        let call = self.call()?;
        let turn = timeout_at(call.deadline, self.server.plans.lock()).await.map_err(|_| busy())?;
        Ok(Attempts { backoff: Backoff::until(call.deadline).at_most(SHORT_PAUSE), call, _turn: turn })
    }

    /// None if a key has changed meanwhile.
    async fn try_to_apply(
        &self,
        call: &Call<'_>,
        plan: &Plan,
        attempt: &Attempt<'_>,
        ttl: u64,
    ) -> Result<Option<Result<Applied>>> {
        let keys: Vec<Key> = last_mutations(plan).into_keys().cloned().collect();
        let reads = read_and_queue(&self.layout.config(), &keys);
        let (transaction, replies) = Transaction::begin(self, call, attempt.key, reads).await?;
        let texts = texts_in(replies, keys)?;
        let values = values_of(&texts)?;
        let payload = attempt.payload.ok_or_else(corrupt_plan)?;
        let step = apply_step(plan, payload, transaction.record(), |key| values.get(key).cloned());
        let commands = match &step {
            ApplyStep::Change(changes) => self.change(&transaction.plan, attempt, ttl, &texts, changes),
            _ => Vec::new(),
        };
        let (status, refusal, result) = step.end();
        let is_committed = transaction.commit(attempt, status, refusal, commands).await?;
        Ok(is_committed.then_some(result))
    }

    /// None if a key has changed meanwhile.
    async fn try_to_roll_back(
        &self,
        call: &Call<'_>,
        attempt: Attempt<'_>,
        force: bool,
    ) -> Result<Option<Result<Rollback>>> {
        let (mut transaction, _) = Transaction::begin(self, call, attempt.key, Vec::new()).await?;
        let compared = transaction.record().filter(|record| !record.is_rolled_back && !force);
        let changes = compared.iter().flat_map(|record| &record.changes);
        let keys: Vec<Key> = changes.map(|change| change.key.clone()).collect();
        let replies = transaction.send(read_and_queue(&self.layout.config(), &keys)).await?;
        let texts = texts_in(replies, keys)?;
        let values = values_of(&texts)?;
        let step = rollback_step(transaction.record(), force, |key| values.get(key).cloned());
        let mut commands = Vec::new();
        if let (RollbackStep::Restore, Some(found)) = (&step, &transaction.found) {
            let before = found.before.iter().map(|(key, text)| (key, text.as_deref()));
            commands = set_configs(&self.layout.config(), before);
            commands.push(cmd("HSET").arg(&transaction.plan).arg(ROLLED_BACK).arg(1).take());
        }
        let record = transaction.found.take().map(|found| found.record);
        let attempt = attempt.about(record.as_ref());
        let (status, refusal, result) = step.end();
        let is_committed = transaction.commit(&attempt, status, refusal, commands).await?;
        Ok(is_committed.then_some(result))
    }

    async fn audit_page(&self, until: String) -> Result<Page<String>> {
        let mut range = cmd("XREVRANGE");
        range.arg(self.layout.audit()).arg(until).arg("-").arg("COUNT").arg(PAGE);
        let items = reply::list(self.call()?.send_wide(Effect::Read, &range).await?)?;
        let is_full = items.len() == PAGE;
        let entries = items.into_iter().map(|item| entry(self.label(), item)).collect::<Result<Vec<_>>>()?;
        let next = entries.last().filter(|_| is_full).map(|(id, _)| before(id));
        Ok((entries.into_iter().map(|(_, entry)| entry).collect(), next))
    }
}

impl ConfigBatch for Redis {
    /// An optimistic transaction: WATCH, which reads, and MULTI to EXEC, which writes all or nothing.
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let attempt = Attempt::to_apply(self.label(), key, plan, plan.payload_hash(), options);
        let mut attempts = self.attempts().await?;
        loop {
            let applied = self.try_to_apply(&attempts.call, plan, &attempt, ttl).await;
            if let Some(applied) = attempts.call.refreshing(applied)? {
                return applied;
            }
            attempts.pause().await?;
        }
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let begun = Instant::now();
        let mut attempts = self.attempts().await?;
        loop {
            let attempt = Attempt { begun, ..Attempt::to_roll_back(self.label(), key, options) };
            let rolled_back = self.try_to_roll_back(&attempts.call, attempt, options.force).await;
            if let Some(rolled_back) = attempts.call.refreshing(rolled_back)? {
                return rolled_back;
            }
            attempts.pause().await?;
        }
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let redis = self.clone();
        audit::pages(filter, "+".to_owned(), move |until| {
            let redis = redis.clone();
            async move { redis.audit_page(until).await }
        })
    }
}

#[cold]
fn unknown_status() -> Error {
    error::unexpected_reply(Effect::Write)
}

/// The largest id before this one. Exclusive ranges (`(`) need version 6.2.
fn before(id: &str) -> String {
    let (millis, number) = id.split_once('-').unwrap_or((id, "0"));
    match (millis.parse::<u64>(), number.parse::<u64>()) {
        (Ok(millis), Ok(0)) => millis.saturating_sub(1).to_string(),
        (_, number) => format!("{millis}-{}", number.unwrap_or(1) - 1),
    }
}

/// Decodes an entry of the stream: its id and its fields.
fn entry(backend: &'static str, item: Value) -> Result<(String, AuditEntry)> {
    let mut parts = reply::list(item)?.into_iter();
    let text = |part: Option<Value>| -> Result<String> {
        let bytes = part.map(reply::bytes).transpose()?.flatten().ok_or_else(corrupt_plan)?;
        String::from_utf8(bytes).map_err(|_| corrupt_plan())
    };
    let id = text(parts.next())?;
    let mut fields = BTreeMap::new();
    let mut items = reply::list(parts.next().ok_or_else(corrupt_plan)?)?.into_iter();
    while let Some(name) = items.next() {
        fields.insert(text(Some(name))?, text(items.next())?);
    }
    let named = |name: &str| fields.get(name).filter(|text| !text.is_empty());
    let required = |name: &str| named(name).ok_or_else(corrupt_plan);
    let finished = id.split_once('-').and_then(|(millis, _)| millis.parse().ok()).ok_or_else(corrupt_plan)?;
    let micros = required("micros")?.parse().map_err(|_| corrupt_plan())?;
    let (started, finished, duration) = times(finished, micros)?;
    let entry = AuditEntry {
        backend,
        key: decode_key(required("key")?.as_bytes())?,
        action: PlanAction::named(required("action")?).ok_or_else(corrupt_plan)?,
        status: AuditStatus::named(required("status")?).ok_or_else(corrupt_plan)?,
        stage: named("stage").cloned(),
        source: named("source").cloned(),
        started,
        finished,
        duration,
        mutations: required("mutations")?.parse().map_err(|_| corrupt_plan())?,
        payload_hash: named("payload").map(|text| text.parse().map_err(|_| corrupt_plan())).transpose()?,
        error: named("error").map(|text| PlanRefusal::named(text).ok_or_else(corrupt_plan)).transpose()?,
    };
    Ok((id, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_before_an_entry() {
        assert_eq!(before("1700000000123-7"), "1700000000123-6");
        assert_eq!(before("1700000000123-0"), "1700000000122");
        assert_eq!(before("0-1"), "0-0");
    }
}
