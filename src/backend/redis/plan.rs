//! Plans: read, decided here, and committed by a script that compares what was read.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use futures_core::Stream;
use redis::{Value, cmd};

use super::{Redis, config, reply, server::Call};
use crate::{
    Backend, ConfigBatch, ConfigValue, Key, Result,
    backend::{
        plan_step::{ApplyStep, Attempt, RollbackStep, apply_step, last_mutations, rollback_step},
        remote::{
            Backoff, Effect,
            audit::{self, Page},
            busy,
        },
    },
    codec::{PlanChange, PlanRecord, corrupt_plan, decode_key, encode_config, times},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, MAX_AUDIT_ENTRIES, Plan, PlanAction,
        PlanRefusal, Rollback, RollbackOptions,
    },
};

/// Makes the changes of a plan, or none if a value that they were decided from has changed.
const COMMIT: &str = include_str!("commit_plan.lua");

/// How many audit entries are read at a time.
const PAGE: usize = 500;

/// Stored texts of config values.
type Texts = BTreeMap<Key, Option<Vec<u8>>>;

/// The fields of a plan's record that are not about a single config value.
const PAYLOAD: &str = ":payload";
const MUTATIONS: &str = ":mutations";
const STAGE: &str = ":stage";
const ROLLED_BACK: &str = ":rolled_back";
/// The id of the audit entry, which is another one if an expired plan is applied again.
const APPLIED: &str = ":applied";

/// The fields that tell whether a record has changed.
const STATE: [&str; 3] = [PAYLOAD, APPLIED, ROLLED_BACK];

/// The prefixes of the fields that hold the texts from before the plan and after it.
const BEFORE: u8 = b'b';
const AFTER: u8 = b'a';

/// The record of a plan, and what a later attempt compares it with.
#[derive(Default)]
struct Found {
    record: Option<PlanRecord>,
    /// The texts from before the plan.
    before: Texts,
    /// The values of [`STATE`].
    state: [Option<Vec<u8>>; 3],
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

/// Reads the record of a plan. One without a payload is what a commit left that the server stopped.
fn read_record(fields: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Found> {
    let (mut about, mut before, mut after) = (HashMap::new(), Texts::new(), Texts::new());
    for (name, value) in fields {
        match name.split_first() {
            Some((&BEFORE, key)) => drop(before.insert(decode_key(key)?, text_of(&value)?)),
            Some((&AFTER, key)) => drop(after.insert(decode_key(key)?, text_of(&value)?)),
            _ => drop(about.insert(name, value)),
        }
    }
    let named = |name: &str| about.get(name.as_bytes()).map(|value| std::str::from_utf8(value)).transpose();
    let [payload, mutations, stage] =
        [named(PAYLOAD), named(MUTATIONS), named(STAGE)].map(|text| text.map_err(|_| corrupt_plan()));
    let state = STATE.map(|name| about.get(name.as_bytes()).cloned());
    let Some(payload) = payload? else { return Ok(Found { record: None, before, state }) };
    let change = |(key, after): (&Key, &Option<Vec<u8>>)| {
        let after = after.as_ref().map(|text| config::read(key, text)).transpose()?;
        // The text from before the plan is restored as it was.
        Ok(PlanChange { key: key.clone(), before: None, after })
    };
    let record = PlanRecord {
        payload: payload.parse().map_err(|_| corrupt_plan())?,
        mutations: mutations?.and_then(|text| text.parse().ok()).ok_or_else(corrupt_plan)?,
        stage: stage?.filter(|stage| !stage.is_empty()).map(str::to_owned),
        // The server deletes an expired record.
        applied: 0,
        expires: i64::MAX,
        is_rolled_back: about.contains_key(ROLLED_BACK.as_bytes()),
        changes: after.iter().map(change).collect::<Result<_>>()?,
    };
    Ok(Found { record: Some(record), before, state })
}

/// The arguments of [`COMMIT`] that change a plan's record and config values.
#[derive(Default)]
struct Changes {
    /// The time to live of a new record, in milliseconds.
    ttl: Option<u64>,
    record: Vec<Vec<u8>>,
    configs: Vec<Vec<u8>>,
}

/// Names and texts as arguments.
fn pairs<'t>(texts: impl Iterator<Item = (&'t str, Option<&'t [u8]>)>) -> Vec<Vec<u8>> {
    texts.flat_map(|(name, text)| [name.as_bytes().to_vec(), optional(text)]).collect()
}

fn pairs_of(texts: &Texts) -> Vec<Vec<u8>> {
    pairs(texts.iter().map(|(key, text)| (key.as_str(), text.as_deref())))
}

impl Redis {
    /// Reads a plan's record and the texts of config values.
    async fn read_plan(&self, call: &Call<'_>, key: &Key, keys: Vec<Key>) -> Result<(Found, Texts)> {
        let mut commands = vec![cmd("HGETALL").arg(self.layout.plan(key)).take()];
        // Redis refuses the command without a field.
        commands.extend((!keys.is_empty()).then(|| config::query(&self.layout.config(), &keys)));
        let mut replies = call.send_all(Effect::Read, commands).await.into_iter();
        let mut next = || replies.next().transpose();
        let found = match next()? {
            Some(record) => read_record(reply::fields(record)?)?,
            None => Found::default(),
        };
        let texts = next()?.map(reply::list).transpose()?.unwrap_or_default();
        let texts = texts.into_iter().map(reply::bytes).collect::<Result<Vec<_>>>()?;
        Ok((found, keys.into_iter().zip(texts).collect()))
    }

    /// Makes the changes of an attempt and adds its audit entry. False, and nothing is done, if the record or
    /// one of the texts is not what it was.
    async fn commit(
        &self,
        call: &Call<'_>,
        attempt: &Attempt<'_>,
        (status, refusal): (AuditStatus, Option<PlanRefusal>),
        (found, texts): (&Found, &Texts),
        changes: Changes,
    ) -> Result<bool> {
        let mut entry = vec!["MAXLEN".to_owned(), MAX_AUDIT_ENTRIES.to_string(), "*".to_owned()];
        for (name, value) in [
            ("key", attempt.key.as_str().to_owned()),
            ("action", attempt.action.as_str().to_owned()),
            ("status", status.as_str().to_owned()),
            ("stage", attempt.stage.unwrap_or_default().to_owned()),
            ("source", attempt.source.unwrap_or_default().to_owned()),
            ("micros", attempt.micros().to_string()),
            ("mutations", attempt.mutations.to_string()),
            ("payload", attempt.payload.map(|payload| payload.to_string()).unwrap_or_default()),
            ("error", refusal.map(|refusal| refusal.as_str().to_owned()).unwrap_or_default()),
        ] {
            entry.extend([name.to_owned(), value]);
        }
        let entry = entry.into_iter().map(String::into_bytes).collect();
        let mut commit = cmd("EVAL");
        commit.arg(COMMIT).arg(3);
        commit.arg(self.layout.config()).arg(self.layout.plan(attempt.key)).arg(self.layout.audit());
        commit.arg(changes.ttl.map(|ttl| ttl.to_string()).unwrap_or_default());
        let state = STATE.into_iter().zip(&found.state).map(|(name, text)| (name, text.as_deref()));
        for list in [pairs(state), pairs_of(texts), entry, changes.record, changes.configs] {
            commit.arg(list.len()).arg(list);
        }
        match call.send(Effect::Write, &commit).await {
            Ok(reply) => reply::done(reply).map(|()| true),
            Err(error) if error.code() == Some("CONFLICT") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The changes of a plan that is applied.
    fn changes(attempt: &Attempt<'_>, ttl: u64, before: &Texts, changes: &[PlanChange]) -> Changes {
        let after: Texts = changes
            .iter()
            .map(|change| (change.key.clone(), change.after.as_ref().map(encode_config)))
            .collect();
        let about = [
            (PAYLOAD, attempt.payload.map(|payload| payload.to_string()).unwrap_or_default()),
            (MUTATIONS, attempt.mutations.to_string()),
            (STAGE, attempt.stage.unwrap_or_default().to_owned()),
        ];
        let mut record: Vec<_> =
            about.into_iter().flat_map(|(name, text)| [name.into(), text.into_bytes()]).collect();
        for (prefix, texts) in [(BEFORE, before), (AFTER, &after)] {
            for (key, text) in texts {
                record.push([&[prefix], key.as_str().as_bytes()].concat());
                record.push(optional(text.as_deref()));
            }
        }
        Changes { ttl: Some(ttl), record, configs: pairs_of(&after) }
    }

    /// None if a value has changed meanwhile.
    async fn try_to_apply(
        &self,
        call: &Call<'_>,
        plan: &Plan,
        attempt: &Attempt<'_>,
        ttl: u64,
    ) -> Result<Option<Result<Applied>>> {
        let keys = last_mutations(plan).into_keys().cloned().collect();
        let (found, texts) = self.read_plan(call, attempt.key, keys).await?;
        let values = values_of(&texts)?;
        let payload = attempt.payload.ok_or_else(corrupt_plan)?;
        let step = apply_step(plan, payload, found.record.as_ref(), |key| values.get(key).cloned());
        let changes = match &step {
            ApplyStep::Change(changes) => Self::changes(attempt, ttl, &texts, changes),
            _ => Changes::default(),
        };
        let (status, refusal, result) = step.end();
        let read = (&found, &texts);
        let is_committed = self.commit(call, attempt, (status, refusal), read, changes).await?;
        Ok(is_committed.then_some(result))
    }

    /// None if a value has changed meanwhile.
    async fn try_to_roll_back(
        &self,
        call: &Call<'_>,
        attempt: Attempt<'_>,
        force: bool,
    ) -> Result<Option<Result<Rollback>>> {
        let (found, _) = self.read_plan(call, attempt.key, Vec::new()).await?;
        let keys = found.record.iter().filter(|record| !record.is_rolled_back);
        let keys: Vec<Key> =
            keys.flat_map(|record| &record.changes).map(|change| change.key.clone()).collect();
        let texts = self.config_texts(call, &keys).await?;
        let texts: Texts = keys.into_iter().zip(texts).collect();
        let values = values_of(&texts)?;
        let step = rollback_step(found.record.as_ref(), force, |key| values.get(key).cloned());
        let changes = match &step {
            RollbackStep::Restore => Changes {
                record: vec![ROLLED_BACK.into(), b"1".to_vec()],
                configs: pairs_of(&found.before),
                ..Changes::default()
            },
            _ => Changes::default(),
        };
        let attempt = attempt.about(found.record.as_ref());
        let (status, refusal, result) = step.end();
        let read = (&found, &texts);
        let is_committed = self.commit(call, &attempt, (status, refusal), read, changes).await?;
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
    /// Two round trips: one reads what decides, the other commits the decision if that has not changed.
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let attempt = Attempt::to_apply(self.label(), key, plan, plan.payload_hash(), options);
        let call = self.call()?;
        let mut backoff = Backoff::until(call.deadline);
        loop {
            if let Some(applied) = self.try_to_apply(&call, plan, &attempt, ttl).await? {
                return applied;
            }
            if !backoff.pause().await {
                return Err(busy());
            }
        }
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let begun = Instant::now();
        let call = self.call()?;
        let mut backoff = Backoff::until(call.deadline);
        loop {
            let attempt = Attempt { begun, ..Attempt::to_roll_back(self.label(), key, options) };
            if let Some(rolled_back) = self.try_to_roll_back(&call, attempt, options.force).await? {
                return rolled_back;
            }
            if !backoff.pause().await {
                return Err(busy());
            }
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
