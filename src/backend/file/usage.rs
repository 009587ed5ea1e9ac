//! Counters.

use std::collections::BTreeMap;

use super::{File, state::record_of};
use crate::{BatchReport, Increment, Key, Result, UsageRecord, UsageStore, codec::RecordKey};

impl UsageStore for File {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let (key, field) = (key.clone(), field.clone());
        self.write(move |draft| draft.increment(key, field, delta)).await
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<BatchReport> {
        let increments = increments.to_vec();
        self.write(move |draft| {
            let mut report = BatchReport::default();
            for (index, Increment { key, field, delta }) in increments.into_iter().enumerate() {
                let result = draft.increment(key.clone(), field, delta);
                report.record(index, &key, result);
            }
            Ok(report)
        })
        .await
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        self.state()?.usage_record(key)
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.reset_usage(&key)).await
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        let state = self.state()?;
        state.check(|name| matches!(name, RecordKey::Usage(..)))?;
        Ok(state.usage.iter().map(|(key, record)| (key.clone(), record_of(record))).collect())
    }
}
