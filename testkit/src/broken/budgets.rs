//! Faults of budgets, of totals and of resets by prefix.

use gateway_storage::{
    Increment, Key, OptionalExt, Result, UsageStore,
    usage::{Totals, Within},
};

use super::{Broken, Fault::*, overflow};

impl Broken {
    pub(super) async fn within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let before = self.memory.get_counter(key, field).await?;
        let sum = i128::from(before) + i128::from(delta);
        let fits = match self.fault {
            WithinIsExclusive => sum < i128::from(limit),
            WithinInFloats => sum as f64 <= limit as f64,
            _ => sum <= i128::from(limit),
        };
        match self.fault {
            WithinIsRacy if fits => {
                tokio::task::yield_now().await;
                self.memory.increment_usage(key, field, delta).await.map(Within::Counted)
            }
            WithinIsExclusive | WithinInFloats => match (fits, i64::try_from(sum)) {
                (true, Ok(_)) => self.memory.increment_usage(key, field, delta).await.map(Within::Counted),
                (true, Err(_)) => Err(overflow(key)),
                (false, _) => Ok(Within::Refused(before)),
            },
            WithinOverflows if i64::try_from(sum).is_err() => Err(overflow(key)),
            RefusedIsCounted if !fits => {
                drop(self.memory.increment_usage(key, field, delta).await);
                Ok(Within::Refused(before))
            }
            RefusedMakesCounter if !fits => {
                self.memory.increment_usage(key, field, 0).await?;
                Ok(Within::Refused(before))
            }
            RefusedHasNewTotal if !fits => Ok(Within::Refused(before.saturating_add(delta))),
            _ => self.memory.increment_within(key, field, delta, limit).await,
        }
    }

    /// Each item has the total after the whole batch.
    pub(super) fn final_totals(totals: Totals, increments: &[Increment]) -> Totals {
        let mut spoiled = totals.clone();
        for (at, step) in increments.iter().enumerate() {
            let same = |other: &Increment| (&other.key, &other.field) == (&step.key, &step.field);
            let of_counter = increments.iter().zip(&totals.totals).filter(|(other, _)| same(other));
            if totals.totals[at].is_some() {
                spoiled.totals[at] = of_counter.filter_map(|(_, total)| *total).next_back();
            }
        }
        spoiled
    }

    pub(super) async fn reset_prefix(&self, prefix: &Key) -> Result<u64> {
        let records = self.memory.list_usage().await?;
        let is_meant = |key: &Key| match self.fault {
            ResetsWhatContains => key.as_str().contains(prefix.as_str()),
            _ => key.as_str().starts_with(prefix.as_str()),
        };
        let most = if self.has(ResetEndsEarly) { 1_000 } else { usize::MAX };
        let mut number = 0;
        for (key, record) in records.iter().filter(|(key, _)| is_meant(key)).take(most) {
            let reset = self.memory.reset_usage(key).await.optional()?;
            number += reset.map_or(0, |()| if self.has(ResetCountsCounters) { record.len() } else { 1 });
        }
        Ok(number as u64)
    }
}
