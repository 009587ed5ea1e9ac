//! Usage records, one document each, so that a record is read, reset and changed as a whole.

use std::collections::BTreeMap;

use futures_core::Stream;
use mongodb::bson::{Document, doc};

use super::{
    MongoDb,
    command::{FindOneAnd, by_id, delete, find_one, find_one_and},
    counters::{counter, keyed_record, path_of, record_of},
    error,
    increments::increment,
    pool::Permit,
    scan::{collect, get_documents},
};
use crate::{
    Found, Increment, Key, Result, UsageRecord, UsageStore,
    backend::remote::{Effect, listing},
    error::Kind,
    model::{KeyRange, ListOptions, Totals, Within},
};

/// The lowest and the highest total to which `delta` is added within a limit: those of which
/// [`Within::decide`] says Counted.
fn countable(delta: i64, limit: i64) -> (i64, i64) {
    let lowest = i64::MIN - delta.min(0);
    let highest = (i128::from(limit) - i128::from(delta)).min(i64::MAX.into());
    // No total is under the lowest number, nor over 0 and under 1.
    i64::try_from(highest).map_or((1, 0), |highest| (lowest, highest))
}

/// A pipeline that changes one counter, if its total is countable. Else it leaves the document as it is, and
/// the server writes nothing. What is no whole number is left, too.
fn add_within(path: &str, delta: i64, (lowest, highest): (i64, i64)) -> Vec<Document> {
    let count = format!("${path}");
    let total = doc! { "$ifNull": [&count, 0_i64] };
    let counts = doc! { "$and": [
        { "$in": [{ "$type": &count }, ["missing", "int", "long"]] },
        { "$gte": [&total, lowest] },
        { "$lte": [&total, highest] },
    ] };
    vec![doc! { "$set": { path: { "$cond": [counts, { "$add": [total, delta] }, count] } } }]
}

impl UsageStore for MongoDb {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let totals = increment(&self.call()?, key, &[(field, delta)]).await?;
        totals.first().copied().ok_or_else(|| error::unexpected_reply(Effect::Write).with_key(key))
    }

    /// One command. The document as it was tells what the server has decided.
    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let (path, countable) = (path_of(field), countable(delta, limit));
        let pipeline = add_within(&path, delta, countable);
        // A missing counter is 0.
        let creates = (countable.0..=countable.1).contains(&0);
        let compute = || FindOneAnd::Compute { path: path.clone(), pipeline: pipeline.clone(), creates };
        let before = find_one_and(&self.call()?, |pool| &pool.usage, &by_id(key), compute).await;
        let total = before.and_then(|before| before.map_or(Ok(None), |before| counter(&before, &path)));
        let total = total.map_err(|error| error.with_key(key))?.unwrap_or(0);
        Within::decide(key, total, delta, limit)
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        self.add_many(increments).await
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let found = find_one(&self.call()?, |pool| &pool.usage, Kind::Usage, key).await?;
        record_of(key, &found)
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        let (call, path) = (self.call()?, path_of(field));
        let find = |permit: Permit| {
            let (query, only) = (by_id(key), doc! { &path: 1 });
            async move { permit.usage.find_one(query).projection(only).await }
        };
        let count = call.read(find).await?.map_or(Ok(None), |found| counter(&found, &path));
        count.map(Option::unwrap_or_default).map_err(|error| error.with_key(key))
    }

    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        get_documents(&self.call()?, (Kind::Usage, |pool| &pool.usage), keys, record_of).await
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        delete(&self.call()?, |pool| &pool.usage, Kind::Usage, key).await
    }

    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        self.call()?.delete_range(|pool| &pool.usage, &KeyRange::of_prefix(prefix.as_str())).await
    }

    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        listing::list(options, |range, most| self.page(|pool| &pool.usage, range, most, record_of))
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let call = self.call()?;
        let list = |permit: Permit| async move {
            collect(&permit, permit.usage.find(doc! {}).batch_size(1000), keyed_record).await
        };
        Ok(call.read(list).await??.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countable_totals_are_those_that_are_counted() {
        let key = Key::new("k").unwrap();
        let edges = [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, 2, i64::MAX - 1, i64::MAX];
        for (total, delta) in edges.iter().flat_map(|total| edges.map(|delta| (*total, delta))) {
            for limit in edges {
                let decided = Within::decide(&key, total, delta, limit);
                let is_counted = decided.is_ok_and(Within::is_counted);
                let (lowest, highest) = countable(delta, limit);
                assert_eq!((lowest..=highest).contains(&total), is_counted, "{total} {delta} {limit}");
            }
        }
    }
}
