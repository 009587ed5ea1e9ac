//! `UsageStore` for `File`.

use std::{collections::BTreeMap, ops::Range};

use futures_core::Stream;
use tokio::time::Instant;

use super::{
    File,
    draft::decode_count,
    list::Listed,
    snapshot::{Snapshot, Stored},
    work::{FEW, copied, work},
};
use crate::{
    Error, Found, Increment, Key, Outcome, RecordKind, Result, UsageRecord, UsageStore,
    codec::RecordKey,
    error::Kind,
    layer::{later, time_left},
    model::{KeyRange, ListOptions, Totals, Within},
};

/// A commit of a reset by prefix ends with the record that brings it to this number of counters.
const RESET: usize = 1_000;

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

/// Usage records. None: they have more counters than `most`.
fn records(snapshot: &Snapshot, keys: &[Key], mut most: usize) -> Result<Option<Found<UsageRecord>>> {
    let mut found = Found::default();
    for (index, key) in keys.iter().enumerate() {
        let record = match record(snapshot, key, most) {
            Ok(None) => return Ok(None),
            Ok(Some(record)) => {
                most -= record.len();
                Ok(record)
            }
            Err(error) => Err(error),
        };
        found.record(index, key, record);
    }
    found.settle().map(Some)
}

impl Listed for UsageRecord {
    const KIND: RecordKind = RecordKind::Usage;

    fn parse(stored: &[Stored]) -> Result<(Key, Self)> {
        let (key, _) = stored[0].counter_name()?;
        let counters = stored.iter().map(|stored| counter(stored).map(|(_, field, count)| (field, count)));
        Ok((key, counters.collect::<Result<_>>()?))
    }
}

/// The counters to remove next: the name of the first and the one behind the last. None: there are none.
fn to_reset(snapshot: &Snapshot, names: Range<Vec<u8>>) -> Result<Option<Range<Vec<u8>>>> {
    let (mut count, mut last) = (0, Vec::new());
    for stored in snapshot.records(names.clone())? {
        let stored = stored?;
        if stored.raw_key() != last {
            if count >= RESET {
                return Ok(Some(names.start..stored.raw_name().to_vec()));
            }
            last = stored.raw_key().to_vec();
        }
        count += 1;
    }
    Ok((count > 0).then_some(names))
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

    async fn get_counter(&self, key: &Key, field: &Key) -> Result<i64> {
        let name = RecordKey::Usage(key.clone(), field.clone());
        let stored = self.store.reader.snapshot()?.get(&name)?;
        stored.map_or(Ok(0), |stored| decode_count(key, stored.value()))
    }

    /// All from one state.
    async fn get_usages(&self, keys: &[Key]) -> Result<Found<UsageRecord>> {
        let snapshot = self.store.reader.snapshot()?;
        if keys.len() <= FEW
            && let Some(found) = records(&snapshot, keys, FEW)?
        {
            return Ok(found);
        }
        let keys = copied(keys).await;
        let read = move || records(&snapshot, &keys, usize::MAX).map(Option::unwrap_or_default);
        work(self.deadline, false, read).await
    }

    async fn reset_usage(&self, key: &Key) -> Result<()> {
        let key = key.clone();
        self.write(move |draft| draft.reset_usage(&key)).await
    }

    /// Up to 1,000 records are one commit.
    async fn reset_usage_prefix(&self, prefix: &Key) -> Result<u64> {
        self.committer()?;
        let until = later(Instant::now(), time_left(self.deadline));
        let mut names = RecordKey::in_range(RecordKind::Usage, &KeyRange::of_prefix(prefix.as_str()));
        let mut deleted = 0;
        loop {
            let deadline = until.saturating_duration_since(Instant::now());
            let page = Self { deadline, ..self.clone() }.reset_some(names.clone()).await;
            match page
                .map_err(|error| if deleted > 0 { error.with_outcome(Outcome::Unknown) } else { error })?
            {
                Some((count, end)) => {
                    deleted += count;
                    names.start = end;
                }
                None => return Ok(deleted),
            }
        }
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

    /// As [`stream_credentials`](crate::CredentialStore::stream_credentials).
    fn stream_usage(&self, options: ListOptions) -> impl Stream<Item = Result<(Key, UsageRecord)>> + Send {
        self.stream(options)
    }
}

impl File {
    /// Deletes the first records of these names. Returns their number and where the others begin, or None if
    /// there is no record.
    async fn reset_some(&self, names: Range<Vec<u8>>) -> Result<Option<(u64, Vec<u8>)>> {
        let Some(names) = self.read(move |snapshot| to_reset(snapshot, names)).await? else {
            return Ok(None);
        };
        let end = names.end.clone();
        let deleted = self.write(move |draft| draft.remove_counters(&names)).await?;
        Ok(Some((deleted, end)))
    }
}
