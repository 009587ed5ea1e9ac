//! `UsageStore` for `File`.

use std::collections::BTreeMap;

use super::{
    File,
    draft::decode_count,
    snapshot::{Snapshot, Stored},
    work::{FEW, copied, work},
};
use crate::{
    Error, Increment, Key, Result, UsageRecord, UsageStore,
    codec::RecordKey,
    error::Kind,
    model::{Totals, Within},
};

fn counter(stored: &Stored) -> Result<(Key, Key, i64)> {
    let (key, field) = stored.counter_name()?;
    let count = decode_count(&key, stored.value())?;
    Ok((key, field, count))
}

/// A usage record. None: it has more counters than `most`.
fn record(snapshot: &Snapshot, key: &Key, most: usize) -> Result<Option<UsageRecord>> {
    let mut record = UsageRecord::default();
    for stored in snapshot.records(RecordKey::counters(key))? {
        let (_, field, count) = counter(&stored?)?;
        record.set(field, count);
        if record.len() > most {
            return Ok(None);
        }
    }
    if record.is_empty() { Err(Error::not_found(Kind::Usage, key)) } else { Ok(Some(record)) }
}

impl UsageStore for File {
    async fn increment_usage(&self, key: &Key, field: &Key, delta: i64) -> Result<i64> {
        let (key, field) = (key.clone(), field.clone());
        self.write(move |draft| draft.increment(&key, &field, delta)).await
    }

    async fn increment_within(&self, key: &Key, field: &Key, delta: i64, limit: i64) -> Result<Within> {
        let (key, field) = (key.clone(), field.clone());
        self.write(move |draft| draft.increment_within(&key, &field, delta, limit)).await
    }

    async fn increment_many(&self, increments: &[Increment]) -> Result<Totals> {
        let admitted = self.admit(increments.len(), 0).await?;
        let increments = copied(increments).await;
        self.write_admitted(admitted, move |draft| {
            let results = increments.into_iter().map(|Increment { key, field, delta }| {
                let result = draft.increment(&key, &field, delta);
                (key, result)
            });
            Ok(Totals::collect(results))
        })
        .await
    }

    async fn get_usage(&self, key: &Key) -> Result<UsageRecord> {
        let snapshot = self.store.reader.snapshot()?;
        if let Some(record) = record(&snapshot, key, FEW)? {
            return Ok(record);
        }
        let key = key.clone();
        work(self.deadline, false, move || record(&snapshot, &key, usize::MAX).map(Option::unwrap_or_default))
            .await
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.reset_usage(&key)).await
    }

    async fn list_usage(&self) -> Result<BTreeMap<Key, UsageRecord>> {
        self.read(|snapshot| {
            let mut records: BTreeMap<Key, UsageRecord> = BTreeMap::new();
            for stored in snapshot.records(RecordKey::usage())? {
                let (key, field, count) = counter(&stored?)?;
                records.entry(key).or_default().set(field, count);
            }
            Ok(records)
        })
        .await
    }
}
