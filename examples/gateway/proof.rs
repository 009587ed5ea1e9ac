//! Proves that every count is exact: compares the reopened store with the contents computed from what the
//! requests reported.

use std::{collections::BTreeMap, fmt};

use futures_util::TryStreamExt;
use gateway_storage::{Credential, CredentialStore, Key, Result, Storage, UsageStore, list::ListOptions};

use crate::report::thousands;

/// Every counter and every credential of a store.
pub(crate) struct Contents {
    counters: BTreeMap<(Key, Key), i64>,
    credentials: BTreeMap<Key, Credential>,
}

impl Contents {
    pub(crate) async fn read<B: CredentialStore + UsageStore>(storage: &Storage<B>) -> Result<Self> {
        let mut counters = BTreeMap::new();
        for (key, record) in storage.list_usage().await? {
            counters.extend(record.into_iter().map(|(field, count)| ((key.clone(), field), count)));
        }
        let credentials = storage.stream_credentials(ListOptions::default()).try_collect().await?;
        Ok(Self { counters, credentials })
    }

    /// The number of requests counted so far, in all runs.
    pub(crate) fn requests(&self) -> u64 {
        let total = self
            .counters
            .iter()
            .find(|((key, field), _)| key.as_str() == "total" && field.as_str() == "requests");
        total.map_or(0, |(_, count)| u64::try_from(*count).unwrap_or(0))
    }

    /// The contents after these counts and refreshes.
    pub(crate) fn after(
        mut self,
        counted: &BTreeMap<(Key, Key), i64>,
        refreshed: Vec<(Key, Credential)>,
    ) -> Result<Self> {
        for (counter, count) in counted {
            *self.counters.entry(counter.clone()).or_default() += count;
        }
        for (id, changed) in refreshed {
            let mut fields =
                self.credentials.get(&id).map(|before| before.fields().clone()).unwrap_or_default();
            fields.extend(changed.fields().clone());
            self.credentials.insert(id, Credential::new(fields)?);
        }
        Ok(self)
    }

    pub(crate) fn compare(&self, found: &Self) -> Proof {
        let wrong_counters = differences(&self.counters, &found.counters)
            .map(|counter| {
                let ((key, field), count) = (counter, |of: &Self| of.counters.get(counter).copied());
                let text = |count: Option<i64>| count.map_or("nothing".into(), |count| count.to_string());
                let (expected, found) = (text(count(self)), text(count(found)));
                format!("{} {}: expected {expected}, found {found}", key.as_str(), field.as_str())
            })
            .collect();
        let wrong_credentials = differences(&self.credentials, &found.credentials)
            .map(|id| format!("credential {}", id.as_str()))
            .collect();
        Proof {
            counters: self.counters.len(),
            credentials: self.credentials.len(),
            wrong_counters,
            wrong_credentials,
        }
    }
}

/// The keys whose values differ between two maps, or that only one of them has.
fn differences<'m, K: Ord, V: PartialEq>(
    a: &'m BTreeMap<K, V>,
    b: &'m BTreeMap<K, V>,
) -> impl Iterator<Item = &'m K> {
    let changed = a.iter().filter(|(key, value)| b.get(key) != Some(value)).map(|(key, _)| key);
    changed.chain(b.keys().filter(|key| !a.contains_key(key)))
}

pub(crate) struct Proof {
    counters: usize,
    credentials: usize,
    wrong_counters: Vec<String>,
    wrong_credentials: Vec<String>,
}

impl Proof {
    pub(crate) fn holds(&self) -> bool {
        self.wrong_counters.is_empty() && self.wrong_credentials.is_empty()
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (counters, credentials) = (thousands(self.counters as u64), thousands(self.credentials as u64));
        writeln!(f, "\nclosed and reopened:")?;
        match self.wrong_counters.len() {
            0 => writeln!(f, "  all {counters} counters exact")?,
            wrong => writeln!(f, "  {wrong} counters are WRONG, {counters} were expected")?,
        }
        match self.wrong_credentials.len() {
            0 => writeln!(f, "  all {credentials} credentials as they were last refreshed, no field lost")?,
            wrong => writeln!(f, "  {wrong} credentials are WRONG, {credentials} were expected")?,
        }
        for wrong in self.wrong_counters.iter().chain(&self.wrong_credentials).take(10) {
            writeln!(f, "    {wrong}")?;
        }
        Ok(())
    }
}
