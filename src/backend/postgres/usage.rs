//! Usage records: one row per counter.

use std::collections::BTreeMap;

use super::{
    CONCURRENT_CHUNKS, Postgres,
    server::Call,
    statement::{Parameter, Sql, column, key as name},
};
use crate::{
    BatchReport, Error, ErrorKind, Increment, Key, Result, UsageRecord, UsageStore,
    backend::remote::{Effect, batch},
    error::Kind,
};

/// Increments of one counter with the same sign, which become one row of a statement.
struct Sum<'i> {
    key: &'i Key,
    field: &'i Key,
    total: i64,
    /// The indexes of the increments in the request.
    steps: Vec<usize>,
}

/// Sums the increments of each counter. While all have the same sign, the sum overflows only if one of the
/// steps would. An increment of the other sign goes into the next pass, which is a later statement.
fn passes(increments: &[Increment]) -> Vec<Vec<Sum<'_>>> {
    let mut passes: Vec<BTreeMap<(&Key, &Key), Sum<'_>>> = Vec::new();
    let mut latest: BTreeMap<(&Key, &Key), usize> = BTreeMap::new();
    for (index, Increment { key, field, delta }) in increments.iter().enumerate() {
        let counter = (key, field);
        let pass = latest.entry(counter).or_insert(0);
        let known = passes.get_mut(*pass).and_then(|sums| sums.get_mut(&counter));
        if let Some(sum) = known {
            let changes_sign = (sum.total < 0 && *delta > 0) || (sum.total > 0 && *delta < 0);
            if let Some(total) = sum.total.checked_add(*delta).filter(|_| !changes_sign) {
                sum.total = total;
                sum.steps.push(index);
                continue;
            }
            *pass += 1;
        }
        if passes.len() == *pass {
            passes.push(BTreeMap::new());
        }
        passes[*pass].insert(counter, Sum { key, field, total: *delta, steps: vec![index] });
    }
    passes.into_iter().map(|sums| sums.into_values().collect()).collect()
}

/// Adds the sums in one statement.
async fn add(call: &Call<'_>, sums: &[Sum<'_>]) -> Result<()> {
    let keys = sums.iter().map(|sum| sum.key.as_str()).collect();
    let fields = sums.iter().map(|sum| sum.field.as_str()).collect();
    let totals = sums.iter().map(|sum| sum.total).collect();
    let counters = [Parameter::Texts(keys), Parameter::Texts(fields), Parameter::Numbers(totals)];
    call.run(Effect::Write, Sql::IncrementMany, &counters).await.map(drop)
}

async fn increment(call: &Call<'_>, key: &Key, field: &Key, delta: i64) -> Result<i64> {
    let step = [Parameter::Text(key.as_str()), Parameter::Text(field.as_str()), Parameter::Number(delta)];
    let total = call.run(Effect::Write, Sql::Increment, &step).await;
    total.and_then(|reply| column(reply.row()?, 0)).map_err(|error| error.with_key(key))
}

/// Applies a chunk and returns the steps that failed. If the statement overflows, halves the chunk to find
/// the counter.
async fn apply(call: &Call<'_>, sums: &[Sum<'_>], increments: &[Increment]) -> Vec<(usize, Error)> {
    let (mut failed, mut parts) = (Vec::new(), vec![sums]);
    while let Some(part) = parts.pop() {
        let Err(error) = add(call, part).await else { continue };
        match part {
            [_, _, ..] if error.kind() == ErrorKind::Overflow => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([right, left]);
            }
            [sum] if error.kind() == ErrorKind::Overflow && sum.steps.len() > 1 => {
                for &step in &sum.steps {
                    let total = increment(call, sum.key, sum.field, increments[step].delta).await;
                    failed.extend(total.err().map(|error| (step, error)));
                }
            }
            _ => failed.extend(
                part.iter()
                    .flat_map(|sum| sum.steps.iter().map(|&step| (step, error.clone().with_key(sum.key)))),
            ),
        }
    }
    failed
}

impl UsageStore for Postgres {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        increment(&self.call()?, key, field, delta).await
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<BatchReport> {
        let call = self.call()?;
        let mut failed = BTreeMap::new();
        for sums in passes(increments) {
            let chunks = batch::run(&sums, |_| 0, CONCURRENT_CHUNKS, |chunk| apply(&call, chunk, increments));
            failed.extend(chunks.await.into_iter().flat_map(|(_, failed)| failed));
        }
        let increments = increments.iter().enumerate();
        batch::report_each(increments.map(|(index, increment)| (&increment.key, failed.remove(&index))))
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let reply = self.call()?.run(Effect::Read, Sql::GetUsage, &[Parameter::Text(key.as_str())]).await?;
        if reply.rows.is_empty() {
            return Err(Error::not_found(Kind::Usage, key));
        }
        let record: Result<_> = reply.rows.iter().map(|row| Ok((name(row, 0)?, column(row, 1)?))).collect();
        record.map_err(|error| error.with_key(key))
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let name = [Parameter::Text(key.as_str())];
        let reset = self.call()?.run(Effect::Write, Sql::ResetUsage, &name).await?;
        Error::unless_found(reset.count > 0, Kind::Usage, key)
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let reply = self.call()?.run(Effect::Read, Sql::ListUsage, &[]).await?;
        let mut records: BTreeMap<Key, UsageRecord> = BTreeMap::new();
        for row in &reply.rows {
            records.entry(name(row, 0)?).or_default().set(name(row, 1)?, column(row, 2)?);
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(deltas: &[i64]) -> Vec<i64> {
        let (key, field) = (Key::new("k").unwrap(), Key::new("f").unwrap());
        let increments: Vec<_> = deltas.iter().map(|delta| Increment::new(&key, &field, *delta)).collect();
        passes(&increments).iter().map(|sums| sums[0].total).collect()
    }

    #[test]
    fn increments_of_one_sign_share_a_pass() {
        assert_eq!(totals(&[]), [] as [i64; 0]);
        assert_eq!(totals(&[1, 0, 2, 3]), [6]);
        assert_eq!(totals(&[0, -2, 0, -3]), [-5]);
        assert_eq!(totals(&[5, -5, -1, 2]), [5, -6, 2]);
        assert_eq!(totals(&[i64::MAX, 1, i64::MIN]), [i64::MAX, 1, i64::MIN]);
    }

    #[test]
    fn counters_are_sorted_within_a_pass() {
        let step = |key: &str, delta| Increment::new(&Key::new(key).unwrap(), &Key::new("f").unwrap(), delta);
        let increments = [step("b", 1), step("a", 1), step("b", 1), step("a", -1)];
        let passes = passes(&increments);
        let steps: Vec<Vec<_>> =
            passes.iter().map(|sums| sums.iter().map(|sum| sum.steps.clone()).collect()).collect();
        assert_eq!(steps, [vec![vec![1], vec![0, 2]], vec![vec![3]]]);
    }
}
