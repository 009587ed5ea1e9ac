//! Faults of counters.

use std::collections::BTreeMap;

use futures_util::Stream;
use gateway_storage::{
    Error, ErrorKind, Exportable, Increment, Key, OptionalExt, Record, Result, UsageRecord, UsageStore,
    list::ListOptions,
    usage::{Totals, Within},
};

use super::{Broken, Fault::*, overflow};

impl Broken {
    async fn within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
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
    fn final_totals(totals: Totals, increments: &[Increment]) -> Totals {
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

    async fn reset_prefix(&self, prefix: &Key) -> Result<u64> {
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

impl UsageStore for Broken {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let (key, field) = self.counter(key, field);
        let before =
            self.memory.get_usage(&key).await.optional()?.and_then(|record| record.get(field.as_str()));
        let before = before.unwrap_or(0);
        let set = async |count| {
            let record = Record::Usage { key: key.clone(), field: field.clone(), count };
            self.memory.import(&[record]).await?.complete().map(|_| count)
        };
        match self.fault {
            LosesTenthIncrement if self.every(10) => before.checked_add(delta).ok_or_else(|| overflow(&key)),
            RacyIncrement => {
                tokio::task::yield_now().await;
                set(before.checked_add(delta).ok_or_else(|| overflow(&key))?).await
            }
            CountsInFloats => {
                let total = self.memory.increment_usage(&key, &field, delta).await?;
                set(total as f64 as i64).await
            }
            OverflowWraps => set(before.wrapping_add(delta)).await,
            OverflowIsOk => set(before.saturating_add(delta)).await,
            ZeroMakesNoCounter if delta == 0 => Ok(before),
            TimeoutLies if self.hasty => {
                self.memory.increment_usage(&key, &field, delta).await?;
                Err(Error::new(ErrorKind::Timeout, "too slow"))
            }
            _ => self.memory.increment_usage(&key, &field, delta).await,
        }
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let (key, field) = self.counter(key, field);
        self.within(&key, &field, delta, limit).await
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        let mut results: BTreeMap<usize, Result<i64>> = BTreeMap::new();
        let mut order: Vec<usize> = (0..increments.len()).collect();
        if self.has(ManyReordered) {
            order.sort_by_key(|&at| increments[at].delta);
        }
        for index in order {
            let Increment { key, field, delta, .. } = &increments[index];
            let result = self.increment_usage(key, field, *delta).await;
            let failed = result.is_err();
            results.insert(index, result);
            if failed && self.has(OverflowStopsMany) {
                break;
            }
        }
        let mut totals = Totals::default();
        for (index, result) in results {
            totals.record(&increments[index].key, result);
        }
        Ok(if self.has(TotalsAreFinal) { Self::final_totals(totals, increments) } else { totals })
    }

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        let (key, field) = self.counter(key, field);
        if self.has(MissingCounterFails) {
            self.memory.get_usage(&key).await?;
        }
        self.memory.get_counter(&key, &field).await
    }

    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        self.reset_prefix(prefix).await
    }

    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        let all = self.memory.stream_usage(ListOptions::default());
        self.spoiled(options, all, move |key| async move { self.memory.get_usage(&key).await.is_ok() })
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        match self.memory.get_usage(&self.key(key)).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.has(MissingUsageIsEmpty) => {
                Ok(UsageRecord::default())
            }
            other => other,
        }
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let key = &self.key(key);
        let before = self.memory.get_usage(key).await;
        match (self.memory.reset_usage(key).await, before) {
            (Err(error), _) if error.kind() == ErrorKind::NotFound && self.has(ResetOfMissingIsOk) => Ok(()),
            (Err(error), _) if self.has(MissingHasNoKey) => Err(Error::new(error.kind(), "no such file")),
            (Ok(()), Ok(before)) if self.has(ResetLeavesAField) && before.len() > 2 => {
                let (field, count) = before.into_iter().next_back().expect("more than two");
                self.memory.increment_usage(key, &field, count).await.map(drop)
            }
            (result, _) => result,
        }
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        self.memory.list_usage().await
    }
}
