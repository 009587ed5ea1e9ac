//! `UsageStore` for `File`.

use std::collections::BTreeMap;

use super::{
    File,
    state::{Counters, State, record_of},
    work::{FEW, copied, work},
};
use crate::{BatchReport, Increment, Key, Result, UsageRecord, UsageStore, codec::RecordKey};

impl UsageStore for File {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let (key, field) = (key.clone(), field.clone());
        self.write(move |draft| draft.increment(key, field, delta)).await
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<BatchReport> {
        let increments = copied(increments).await;
        self.write(move |draft| {
            let results = increments.into_iter().map(|Increment { key, field, delta }| {
                let result = draft.increment(key.clone(), field, delta);
                (key, result)
            });
            Ok(BatchReport::collect(results))
        })
        .await
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let state = {
            let state = self.state()?;
            if state.usage.get(key).is_none_or(|record| record.len() <= FEW) {
                return state.usage_record(key);
            }
            State::clone(&state)
        };
        let key = key.clone();
        work(self.deadline, false, move || state.usage_record(&key)).await
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.reset_usage(&key)).await
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let state = self.snapshot()?;
        let is_small =
            state.usage.len() <= FEW && state.usage.values().map(Counters::len).sum::<usize>() <= FEW;
        work(self.deadline, is_small, move || {
            state.check(|name| matches!(name, RecordKey::Usage(..)))?;
            Ok(state.usage.iter().map(|(key, record)| (key.clone(), record_of(record))).collect())
        })
        .await
    }
}
