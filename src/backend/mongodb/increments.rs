//! Batches of increments. An `update` returns no totals, so the counters of each record are one
//! `findAndModify`, or many records are a transaction that updates and then reads them.

use std::collections::BTreeMap;

use mongodb::bson::{RawDocumentBuf, raw::cstr};

use super::{
    CONCURRENT_CHUNKS, MongoDb,
    command::{FindOneAnd, any_of, by_id, find_one_and, of_paths, update, upsert},
    commit::commit,
    counters::{change, keyed_record, overflow, path_of, record},
    error, parts,
    server::Call,
};
use crate::{
    Error, ErrorKind, Increment, Key, Outcome, Result, UsageRecord,
    backend::remote::{
        Effect, batch,
        sums::{self, Add, Step, Sum},
    },
    model::Totals,
};

/// Up to this many records are changed without a transaction.
const FEW_RECORDS: usize = 16;

/// How many counters one statement changes: a statement is limited to the size of a document.
pub(super) const COUNTERS: usize = 1000;

/// The sums of counters of one record.
type Group<'s> = &'s [Sum<'s>];

/// Adds to counters of one record, all or none, and returns their totals.
pub(super) async fn increment(call: &Call<'_>, key: &Key, counters: &[(&Key, i64)]) -> Result<Vec<i64>> {
    let paths: Vec<_> = counters.iter().map(|(field, delta)| (path_of(field), *delta)).collect();
    let increment = || FindOneAnd::Increment(paths.clone());
    let found = find_one_and(call, |pool| &pool.usage, &by_id(key), increment).await;
    let found = found.map_err(|error| overflow(error).with_key(key))?;
    let found = found.as_ref().and_then(|found| record(found).ok()).unwrap_or_default();
    let total = |(field, _): &(&Key, i64)| found.get(field.as_str());
    let totals: Option<Vec<i64>> = counters.iter().map(total).collect();
    totals.ok_or_else(|| error::unexpected_reply(Effect::Write).with_key(key))
}

impl Add for Call<'_> {
    const OF_ONE_SUM: &'static [ErrorKind] = &[ErrorKind::Overflow, ErrorKind::Corrupt, ErrorKind::TooLarge];

    /// The sums are of one record.
    async fn add(&self, sums: &[Sum<'_>]) -> Result<Vec<i64>> {
        let Some(first) = sums.first() else { return Ok(Vec::new()) };
        let counters: Vec<_> = sums.iter().map(|sum| (sum.field, sum.total)).collect();
        increment(self, first.key, &counters).await
    }
}

impl MongoDb {
    pub(super) async fn add_many(&self, increments: &[Increment]) -> Result<Totals> {
        let (call, mut steps) = (&self.call()?, Vec::with_capacity(increments.len()));
        let is_large = increments.len() > FEW_RECORDS;
        let has_transactions = is_large && call.permit().await?.writable.has_transactions();
        for sums in sums::passes(increments) {
            let records = sums.chunk_by(|sum, next| sum.key == next.key);
            let groups: Vec<Group<'_>> = records.flat_map(|record| record.chunks(COUNTERS)).collect();
            let is_together = has_transactions && groups.len() > FEW_RECORDS;
            // On its own, a group is a chunk.
            let bytes = |group: &Group<'_>| if is_together { size(group) } else { batch::CHUNK_BYTES };
            let add = |chunk| add_chunk(call, chunk, increments);
            let chunks = batch::run(&groups, bytes, CONCURRENT_CHUNKS, add).await;
            steps.extend(chunks.into_iter().flat_map(|(_, steps)| steps));
        }
        sums::totals(increments, steps)
    }
}

/// About the size of a statement.
fn size(group: &Group<'_>) -> usize {
    group.iter().map(|sum| sum.key.as_str().len() + sum.field.as_str().len()).sum()
}

async fn add_chunk<'s>(call: &Call<'_>, chunk: &[Group<'s>], increments: &[Increment]) -> Vec<Step> {
    let one = |group: &Group<'s>| {
        let group: Group<'s> = group;
        async move { Ok(sums::apply(call, group, increments).await) }
    };
    let together = |part| async move {
        let totals = add_together(call, part).await?;
        Ok(sums::results(part.iter().copied().flatten(), Ok(totals), increments))
    };
    let parts = parts::run(call, chunk, sums::is_of_one_sum::<Call<'_>>, one, together).await;
    let failed =
        |part: &[Group<'_>], error| sums::results(part.iter().copied().flatten(), Err(error), increments);
    parts.into_iter().flat_map(|(part, steps)| steps.unwrap_or_else(|error| failed(part, error))).collect()
}

/// Adds the sums of several records in one transaction, and returns their totals in order.
async fn add_together(call: &Call<'_>, part: &[Group<'_>]) -> Result<Vec<i64>> {
    let permit = call.permit().await?;
    let mut session = call.ask(permit.begin_session()).await?;
    let (deadline, sums) = (call.deadline, || part.iter().copied().flatten());
    let statement = |group: &Group<'_>| {
        let counters = group.iter().map(|sum| (sum.field, sum.total));
        upsert(group[0].key, change(cstr!("$inc"), counters))
    };
    let statements: Vec<RawDocumentBuf> = part.iter().map(statement).collect();
    let (ids, paths) = (any_of(part.iter().map(|group| group[0].key)), sums().map(|sum| path_of(sum.field)));
    let paths = of_paths(paths);
    // One more than there are: then the server knows that the first reply is the last one.
    let batch_size = u32::try_from(part.len() + 1).unwrap_or(u32::MAX);
    let adding = async move {
        let add = async {
            let update = permit.database.run_raw_command(update(&permit.usage, statements.iter(), true));
            let reply = update.session(session.driver()).await?;
            if let Some(error) = error::of_write_error(&reply) {
                // It ended the transaction.
                return Ok(Err(overflow(error.with_outcome(Outcome::NotApplied))));
            }
            let find = permit.usage.find(ids).projection(paths).batch_size(batch_size);
            let (mut found, mut records) = (find.session(session.driver()).await?, BTreeMap::new());
            while found.advance(session.driver()).await? {
                match keyed_record(found.current()) {
                    Ok((key, record)) => records.insert(key, record),
                    Err(error) => return Ok(Err(error)),
                };
            }
            Ok(Ok(records))
        };
        let records = add.await.map_err(|error| error::of_statement(&error))??;
        commit(session, deadline).await?;
        Ok::<BTreeMap<Key, UsageRecord>, Error>(records)
    };
    let records = call.detached(Effect::Write, adding).await??;
    let total = |sum: &Sum<'_>| records.get(sum.key)?.get(sum.field.as_str());
    let totals: Option<Vec<i64>> = sums().map(total).collect();
    totals.ok_or_else(|| error::unexpected_reply(Effect::Write))
}
