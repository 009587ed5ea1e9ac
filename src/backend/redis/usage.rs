//! Usage records: one hash per record.

use std::collections::BTreeMap;

use futures_core::Stream;
use redis::{Cmd, Value, cmd};

use super::{
    Redis,
    keys::{Keys, MAX_KEYS, Part},
    layout::Space,
    many::{self, in_chunks},
    reply,
    server::Call,
    within,
};
use crate::{
    Error, Found, Increment, Key, Outcome, Result, UsageRecord, UsageStore,
    backend::remote::Effect,
    capability::existing,
    error::Kind,
    model::{KeyRange, ListOptions, Totals, Within},
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

    fn unlink_record(&self, key: &Key) -> Cmd {
        cmd("UNLINK").arg(self.usage(key)).take()
    }

    /// Reads distinct records in pipelines.
    async fn get_records(&self, call: &Call<'_>, keys: &[Key]) -> Vec<Result<UsageRecord>> {
        let read = |chunk: &[Key]| {
            call.send_all(Effect::Read, chunk.iter().map(|key| self.whole_record(key)).collect())
        };
        let replies = in_chunks(keys, |_| 0, read).await;
        keys.iter().zip(replies).map(|(key, reply)| record(key, reply)).collect()
    }

    /// Deletes records, and returns how many there were: one UNLINK, or in a cluster a pipeline.
    async fn unlink_chunk(&self, call: &Call<'_>, keys: &[Key]) -> Vec<Result<i64>> {
        let replies = if call.takes_many_keys() {
            let mut unlink = cmd("UNLINK");
            for key in keys {
                unlink.arg(self.usage(key));
            }
            vec![call.send(Effect::Write, &unlink).await]
        } else {
            call.send_all(Effect::Write, keys.iter().map(|key| self.unlink_record(key)).collect()).await
        };
        replies.into_iter().map(|reply| reply.and_then(reply::number)).collect()
    }

    /// Deletes the records with a prefix, and counts them.
    async fn reset_counted(&self, prefix: &Key, deleted: &mut u64) -> Result<()> {
        let (call, prefix) = (self.call()?, prefix.as_str());
        let mut rest = Some(KeyRange::of_prefix(prefix));
        while rest.is_some() {
            let keys = self.scan_first(&call, Space::Usage, prefix, &mut rest, MAX_KEYS).await?;
            let mut failed: Option<Error> = None;
            for unlinked in in_chunks(&keys, |_| 0, |chunk| self.unlink_chunk(&call, chunk)).await {
                match unlinked {
                    Ok(number) => *deleted += number.unsigned_abs(),
                    Err(error) if error.outcome() == Outcome::Unknown => failed = Some(error),
                    Err(error) => drop(failed.get_or_insert(error)),
                }
            }
            failed.map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}

/// The record in a reply to HGETALL.
fn record(key: &Key, reply: Result<Value>) -> Result<UsageRecord> {
    let record = reply::usage(key, reply.map_err(|error| error.with_key(key))?)?;
    record.ok_or_else(|| Error::not_found(Kind::Usage, key))
}

impl UsageStore for Redis {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let reply = self.call()?.send(Effect::Write, &self.increment(key, field, delta)).await;
        reply.and_then(reply::number).map_err(|error| error.with_key(key))
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let eval = within::command(&self.usage(key), field, delta, limit);
        let reply = self.call()?.send(Effect::Write, &eval).await;
        within::result(key, delta, reply.map_err(|error| error.with_key(key))?)
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        let (call, mut totals) = (self.call()?, Totals::default());
        for chunk in increments.chunks(PIPELINE) {
            let commands =
                chunk.iter().map(|Increment { key, field, delta }| self.increment(key, field, *delta));
            let replies = call.send_all(Effect::Write, commands.collect()).await;
            for (Increment { key, .. }, reply) in chunk.iter().zip(replies) {
                totals.record(key, reply.and_then(reply::number).map_err(|error| error.with_key(key)));
            }
        }
        totals.settle()
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        record(key, self.call()?.send(Effect::Read, &self.whole_record(key)).await)
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        let get = cmd("HGET").arg(self.usage(key)).arg(field.as_str()).take();
        let reply = self.call()?.send(Effect::Read, &get).await;
        match reply.and_then(reply::bytes).map_err(|error| error.with_key(key))? {
            Some(count) => reply::counter(&count).ok_or_else(|| reply::no_counter(key)),
            None => Ok(0),
        }
    }

    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        let (call, distinct) = (self.call()?, many::distinct(keys));
        many::found(keys, &distinct, self.get_records(&call, &distinct).await)
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let reply = self.call()?.send(Effect::Write, &self.unlink_record(key)).await?;
        reply::deleted(Kind::Usage, key, reply)
    }

    /// Scans the whole database.
    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        let mut deleted = 0;
        match self.reset_counted(prefix, &mut deleted).await {
            Ok(()) => Ok(deleted),
            Err(error) if deleted > 0 => Err(error.with_outcome(Outcome::Unknown)),
            Err(error) => Err(error),
        }
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let call = self.call()?;
        let keys = self.scan(&call, Space::Usage).await?;
        let found = many::found(&keys, &keys, self.get_records(&call, &keys).await)?;
        Ok(existing(found)?.into_iter().collect())
    }

    /// Each list of keys is a scan of the whole database. See [`Redis`].
    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        let keys = Keys::new(self, Part::Usage, options);
        keys.stream(|redis, keys| async move { redis.get_usages(&keys).await })
    }
}
