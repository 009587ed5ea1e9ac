//! Plans: one script to apply and one to roll back, on keys of one slot.

use std::collections::{BTreeMap, BTreeSet};

use futures_core::Stream;
use redis::{Cmd, Value, cmd};

use super::{Redis, call::Call, config, reply};
use crate::{
    Backend, ConfigBatch, ConfigValue, Error, Key, Result,
    backend::{
        plan_step::{Attempt, first_unexpected, last_mutations},
        remote::{
            Effect,
            audit::{self, Page},
        },
    },
    codec::{corrupt_plan, decode_key, encode_config, is_same, times},
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, Expect, MAX_AUDIT_ENTRIES,
        MAX_PLAN_BYTES, Plan, PlanAction, PlanRefusal, Rollback, RollbackOptions,
    },
};

/// Applies a plan, if the values that its expectations were checked against are unchanged.
const APPLY: &str = include_str!("apply_plan.lua");

const ROLLBACK: &str = include_str!("rollback_plan.lua");

/// How many audit entries are read at a time.
const PAGE: usize = 500;

/// An optional text as the scripts encode it.
fn optional(text: Option<&[u8]>) -> Vec<u8> {
    text.map_or_else(|| b"-".to_vec(), |text| [b"+", text].concat())
}

/// The status in a script's reply, and the items after it.
fn status(reply: Value) -> Result<(String, Vec<Value>)> {
    let mut items = reply::list(reply)?.into_iter();
    let status = items.next().map(reply::bytes).transpose()?.flatten().unwrap_or_default();
    Ok((String::from_utf8_lossy(&status).into_owned(), items.collect()))
}

/// Stored config values by key.
type Found<'p> = BTreeMap<&'p Key, Option<Vec<u8>>>;

impl Redis {
    fn script(&self, script: &str, key: &Key) -> Cmd {
        let [config, plan, audit] = [self.layout.config(), self.layout.plan(key), self.layout.audit()];
        cmd("EVAL").arg(script).arg(3).arg(config).arg(plan).arg(audit).arg(key.as_str()).take()
    }

    async fn stored<'p>(&self, call: &Call<'_>, keys: &BTreeSet<&'p Key>) -> Result<Found<'p>> {
        if keys.is_empty() {
            return Ok(Found::new());
        }
        let texts = self.config_texts(call, keys.iter().copied()).await?;
        Ok(keys.iter().copied().zip(texts).collect())
    }

    async fn audit_page(&self, until: String) -> Result<Page<String>> {
        let mut range = cmd("XREVRANGE");
        range.arg(self.layout.audit()).arg(until).arg("-").arg("COUNT").arg(PAGE);
        let items = reply::list(self.call()?.send(Effect::Read, &range).await?)?;
        let is_full = items.len() == PAGE;
        let entries = items.into_iter().map(|item| entry(self.label(), item)).collect::<Result<Vec<_>>>()?;
        let next = entries.last().filter(|_| is_full).map(|(id, _)| before(id));
        Ok((entries.into_iter().map(|(_, entry)| entry).collect(), next))
    }
}

/// The key of the first expectation that does not hold for the stored values.
fn unexpected<'p>(plan: &'p Plan, found: &Found<'_>) -> Result<Option<&'p Key>> {
    let values = found
        .iter()
        .map(|(key, text)| Ok((*key, text.as_ref().map(|text| config::read(key, text)).transpose()?)))
        .collect::<Result<BTreeMap<&Key, Option<ConfigValue>>>>()?;
    Ok(first_unexpected(plan, |key, expect| match (expect, values.get(key).and_then(Option::as_ref)) {
        (Expect::Absent, found) => found.is_none(),
        (Expect::Value(expected), Some(found)) => is_same(expected, found),
        (Expect::Value(_), None) => false,
    }))
}

impl ConfigBatch for Redis {
    /// One script, which either fails before it changes a config value or does not fail. A plan with
    /// expectations takes one more round trip, because the script can't compare JSON values.
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let ttl = options.check()?;
        let payload = plan.payload_hash();
        let attempt = Attempt::to_apply(self.label(), key, plan, payload, options);
        let expecting = plan.mutations().iter().filter(|mutation| mutation.expect.is_some());
        let expected: BTreeSet<&Key> = expecting.map(|mutation| &mutation.key).collect();
        let changes = last_mutations(plan);
        let call = self.call()?;
        loop {
            let found = self.stored(&call, &expected).await?;
            let unexpected = unexpected(plan, &found)?;
            let mut apply = self.script(APPLY, key);
            apply.arg(payload.to_string()).arg(ttl);
            apply.arg(attempt.stage.unwrap_or_default()).arg(attempt.source.unwrap_or_default());
            apply.arg(attempt.micros()).arg(plan.len()).arg(MAX_PLAN_BYTES).arg(MAX_AUDIT_ENTRIES);
            apply.arg(i64::from(unexpected.is_some())).arg(found.len());
            for (key, text) in &found {
                apply.arg(key.as_str()).arg(optional(text.as_deref()));
            }
            for (key, value) in &changes {
                apply.arg(key.as_str()).arg(optional(value.map(encode_config).as_deref()));
            }
            let (status, _) = status(call.send(Effect::Write, &apply).await?)?;
            match status.as_str() {
                "committed" => return Ok(Applied::Applied),
                "replayed" => return Ok(Applied::Replayed),
                // A value with an expectation has changed since it was read.
                "look_again" => {}
                status => {
                    let refusal = PlanRefusal::named(status).ok_or_else(unknown_status)?;
                    return Err(refusal.error(unexpected.filter(|_| refusal == PlanRefusal::Unexpected)));
                }
            }
        }
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        options.check()?;
        let attempt = Attempt::to_roll_back(self.label(), key, options);
        let mut roll_back = self.script(ROLLBACK, key);
        roll_back.arg(attempt.source.unwrap_or_default()).arg(attempt.micros());
        roll_back.arg(MAX_AUDIT_ENTRIES).arg(options.action().as_str());
        let (status, names) = status(self.call()?.send(Effect::Write, &roll_back).await?)?;
        match status.as_str() {
            "committed" => Ok(Rollback::RolledBack),
            "replayed" => Ok(Rollback::AlreadyRolledBack),
            "changed" => {
                let names = names.into_iter().map(|name| reply::bytes(name).map(Option::unwrap_or_default));
                let mut changed = names.map(|name| decode_key(&name?)).collect::<Result<Vec<Key>>>()?;
                changed.sort_unstable();
                Ok(Rollback::Refused { changed })
            }
            status => {
                Err(PlanRefusal::named(status).map_or_else(unknown_status, |refusal| refusal.error(None)))
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

#[cold]
fn unknown_status() -> Error {
    super::error::unexpected_reply(Effect::Write)
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
