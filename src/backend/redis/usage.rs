//! Usage records: one hash per record.

use std::collections::BTreeMap;

use redis::{Cmd, cmd};

use super::{Redis, credential::in_chunks, layout::Space, reply};
use crate::{
    BatchReport, Error, Increment, Key, Result, UsageRecord, UsageStore, backend::remote::Effect, error::Kind,
};

/// The maximum number of increments in one pipeline. Pipelines run one after another, so that increments of a
/// counter are applied in order.
const PIPELINE: usize = 10_000;

impl Redis {
    fn usage(&self, key: &Key) -> String {
        self.layout.name(Space::Usage, key)
    }

    fn increment(&self, key: &Key, field: &Key, delta: i64) -> Cmd {
        cmd("HINCRBY").arg(self.usage(key)).arg(field.as_str()).arg(delta).take()
    }

    pub(super) fn whole_record(&self, key: &Key) -> Cmd {
        cmd("HGETALL").arg(self.usage(key)).take()
    }
}

impl UsageStore for Redis {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let reply = self.call()?.send(Effect::Write, &self.increment(key, field, delta)).await;
        reply.and_then(reply::number).map_err(|error| error.with_key(key))
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<BatchReport> {
        let call = self.call()?;
        let mut report = BatchReport::default();
        for (number, chunk) in increments.chunks(PIPELINE).enumerate() {
            let commands =
                chunk.iter().map(|Increment { key, field, delta }| self.increment(key, field, *delta));
            let replies = call.send_all(Effect::Write, commands.collect()).await;
            for (at, (increment, reply)) in chunk.iter().zip(replies).enumerate() {
                let result = reply.and_then(reply::number).map_err(|error| error.with_key(&increment.key));
                report.record(number * PIPELINE + at, &increment.key, result);
            }
        }
        report.settle()
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let reply = self.call()?.send(Effect::Read, &self.whole_record(key)).await;
        let record = reply::usage(key, reply.map_err(|error| error.with_key(key))?)?;
        record.ok_or_else(|| Error::not_found(Kind::Usage, key))
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let reply = self.call()?.send(Effect::Write, cmd("UNLINK").arg(self.usage(key))).await?;
        reply::deleted(Kind::Usage, key, reply)
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let call = self.call()?;
        let keys = self.scan(&call, Space::Usage).await?;
        let records = |chunk: &[Key]| {
            call.send_all(Effect::Read, chunk.iter().map(|key| self.whole_record(key)).collect())
        };
        let replies = in_chunks(&keys, |_| 0, records).await;
        let mut records = BTreeMap::new();
        for (key, reply) in keys.into_iter().zip(replies) {
            // None was deleted meanwhile.
            if let Some(record) = reply::usage(&key, reply.map_err(|error| error.with_key(&key))?)? {
                records.insert(key, record);
            }
        }
        Ok(records)
    }
}
