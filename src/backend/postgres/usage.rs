//! Usage records: one row per counter.

use std::collections::{BTreeMap, HashMap};

use futures_core::Stream;
use tokio_postgres::Row;

use super::{
    CONCURRENT_CHUNKS, Postgres, credential, error,
    server::Call,
    statement::{Parameter, Sql, column, counters_of, key as name},
};
use crate::{
    Error, ErrorKind, Found, Increment, Key, Outcome, Result, UsageRecord, UsageStore,
    backend::remote::{
        Backoff, Effect, batch, keyed,
        sums::{self, Add, Sum},
    },
    error::Kind,
    model::{KeyRange, ListOptions, Totals, Within},
};

impl Add for Call<'_> {
    const OF_ONE_SUM: &'static [ErrorKind] = &[ErrorKind::Overflow];

    /// One statement.
    async fn add(&self, sums: &[Sum<'_>]) -> Result<Vec<i64>> {
        let keys = sums.iter().map(|sum| sum.key.as_str()).collect();
        let fields = sums.iter().map(|sum| sum.field.as_str()).collect();
        let totals = sums.iter().map(|sum| sum.total).collect();
        let counters = [Parameter::Texts(keys), Parameter::Texts(fields), Parameter::Numbers(totals)];
        let reply = self.run(Effect::Write, Sql::IncrementMany, &counters).await?;
        let read = |row| Ok(((column(row, 0)?, column(row, 1)?), column(row, 2)?));
        let totals = reply.rows.iter().map(read).collect::<Result<HashMap<(&str, &str), i64>>>();
        let total = |totals: &HashMap<_, _>, sum: &Sum<'_>| {
            totals.get(&(sum.key.as_str(), sum.field.as_str())).copied().ok_or_else(error::unexpected_reply)
        };
        let totals = totals.and_then(|totals| sums.iter().map(|sum| total(&totals, sum)).collect());
        totals.map_err(|error| error.with_outcome(Outcome::Unknown))
    }
}

async fn increment_within(call: &Call<'_>, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
    let counter = [Parameter::Text(key.as_str()), Parameter::Text(field.as_str())];
    let step = counter.into_iter().chain([delta, limit].map(Parameter::Number)).collect::<Vec<_>>();
    let mut backoff = Backoff::until(call.deadline);
    loop {
        let reply = call.run(Effect::Write, Sql::IncrementWithin, &step).await?;
        let row = reply.row()?;
        if let Some(total) = column(row, 0)? {
            return Ok(Within::Counted(total));
        }
        let found = column::<Option<i64>>(row, 1)?.unwrap_or(0);
        if let refused @ Within::Refused(_) = Within::decide(key, found, delta, limit)? {
            return Ok(refused);
        }
        // The counter was changed since the statement's snapshot. The next statement sees that.
        if !backoff.pause().await {
            return Err(Error::new(
                ErrorKind::Busy,
                "other changes of the counter were in the way until the deadline",
            ));
        }
    }
}

/// The records in rows of keys, fields and counts, each with the result of reading it.
pub(super) fn records(rows: &[Row]) -> Result<BTreeMap<Key, Result<UsageRecord>>> {
    let mut records: BTreeMap<Key, Result<UsageRecord>> = BTreeMap::new();
    for row in rows {
        let key = name(row, 0)?;
        let counter = || Ok((name(row, 1)?, column(row, 2)?));
        let counter: Result<(Key, i64)> = counter().map_err(|error: Error| error.with_key(&key));
        let record = records.entry(key).or_insert_with(|| Ok(UsageRecord::default()));
        match (record.as_mut(), counter) {
            (Ok(record), Ok((field, count))) => record.set(field, count),
            (_, Err(error)) => *record = Err(error),
            (Err(_), Ok(_)) => {}
        }
    }
    Ok(records)
}

async fn get_chunk(call: &Call<'_>, chunk: &[&Key]) -> keyed::FoundChunk<UsageRecord> {
    let reply = call.run(Effect::Read, Sql::GetUsages, &[credential::names(chunk)]).await?;
    Ok(records(&reply.rows)?.into_iter().collect())
}

impl UsageStore for Postgres {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let step = [Parameter::Text(key.as_str()), Parameter::Text(field.as_str()), Parameter::Number(delta)];
        let total = self.call()?.run(Effect::Write, Sql::Increment, &step).await;
        total.and_then(|reply| column(reply.row()?, 0)).map_err(|error| error.with_key(key))
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let within = increment_within(&self.call()?, key, field, delta, limit).await;
        within.map_err(|error| error.with_key(key))
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        let (call, mut steps) = (self.call()?, Vec::with_capacity(increments.len()));
        for sums in sums::passes(increments) {
            let apply = |chunk| sums::apply(&call, chunk, increments);
            let chunks = batch::run(&sums, |_| 0, CONCURRENT_CHUNKS, apply);
            steps.extend(chunks.await.into_iter().flat_map(|(_, steps)| steps));
        }
        sums::totals(increments, steps)
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let reply = self.call()?.run(Effect::Read, Sql::GetUsage, &[Parameter::Text(key.as_str())]).await?;
        if reply.rows.is_empty() {
            return Err(Error::not_found(Kind::Usage, key));
        }
        let record: Result<_> = reply.rows.iter().map(|row| Ok((name(row, 0)?, column(row, 1)?))).collect();
        record.map_err(|error| error.with_key(key))
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        let counter = [Parameter::Text(key.as_str()), Parameter::Text(field.as_str())];
        let reply = self.call()?.run(Effect::Read, Sql::GetCounter, &counter).await?;
        reply.rows.first().map_or(Ok(0), |row| column(row, 0)).map_err(|error| error.with_key(key))
    }

    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        let (call, distinct) = (self.call()?, keyed::distinct(keys));
        let chunks = batch::run(&distinct, |_| 0, CONCURRENT_CHUNKS, |chunk| get_chunk(&call, chunk));
        keyed::found(Kind::Usage, keys, chunks.await)
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let name = [Parameter::Text(key.as_str())];
        let reset = self.call()?.run(Effect::Write, Sql::ResetUsage, &name).await?;
        Error::unless_found(reset.count > 0, Kind::Usage, key)
    }

    /// Deletes chunk by chunk, because the server would roll back one large statement at the deadline, and a
    /// second call would be no further. Some records may be deleted after an error.
    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        let (call, mut range) = (self.call()?, KeyRange::of_prefix(prefix.as_str()));
        let mut deleted = 0;
        let mut reset_chunk = async || {
            let reply = call.run(Effect::Write, Sql::ResetRecords, &counters_of(&range)).await?;
            let row = reply.row()?;
            deleted += column::<i64>(row, 0)?.unsigned_abs();
            let last = column::<Option<&str>>(row, 1)?.map(|_| name(row, 1)).transpose()?;
            Ok(last.is_some_and(|last| range.begin_after(&last)))
        };
        loop {
            match reset_chunk().await {
                Ok(true) => {}
                Ok(false) => return Ok(deleted),
                Err(error) if deleted > 0 => return Err(Error::with_outcome(error, Outcome::Unknown)),
                Err(error) => return Err(error),
            }
        }
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let reply = self.call()?.run(Effect::Read, Sql::ListUsage, &[]).await?;
        records(&reply.rows)?.into_iter().map(|(key, record)| Ok((key, record?))).collect()
    }

    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        self.list(options, Self::page_of_usage)
    }
}
