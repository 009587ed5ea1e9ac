//! The default bodies of batches: one call for each item, one after another, until one deadline.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{task::consume_budget, time::Instant};

use crate::{
    Backend, BatchReport, Error, ErrorKind, Found, Key, Result,
    layer::{Operation, OperationKind, later, time_left, within},
};

/// The facts about the call of one item that decide the outcome of a timeout.
pub(super) const READ: Operation = Operation::new("read_item", OperationKind::Read);
pub(super) const WRITE: Operation = Operation::new("write_item", OperationKind::Write);

/// The deadline of a batch, which all calls for its items share.
pub(super) struct Deadline(Instant);

impl Deadline {
    /// The deadline of a batch that begins now.
    pub(super) fn of<B: Backend>(backend: &B) -> Self {
        Self(later(Instant::now(), time_left(backend.deadline())))
    }

    /// Runs the call of one item. After the deadline the call is not begun.
    pub(super) async fn run<T>(
        &self,
        item: Operation,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        // A backend that never waits would otherwise keep other tasks of the thread waiting.
        consume_budget().await;
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = "the deadline passed before this item of the batch was begun";
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        within(left, item, call).await
    }

    /// The result of reading a batch, from the result of each distinct key.
    pub(super) async fn read_each<'k, V: Clone, F: Future<Output = Result<V>> + Send>(
        &self,
        keys: &'k [Key],
        read: impl Fn(&'k Key) -> F,
    ) -> Result<Found<V>> {
        let mut results = BTreeMap::new();
        for key in keys.iter().collect::<BTreeSet<_>>() {
            results.insert(key, read(key).await);
        }
        Found::collect(keys, |key| results[key].clone()).settle()
    }

    /// The result of a batch of writes, from the result of the last item of each key.
    pub(super) async fn set_each<'i, V, F: Future<Output = Result<()>> + Send>(
        &self,
        items: &'i [(Key, V)],
        set: impl Fn(&'i Key, &'i V) -> F,
    ) -> Result<BatchReport> {
        let last: BTreeMap<_, _> = items.iter().map(|(key, value)| (key, value)).collect();
        let mut results = BTreeMap::new();
        for (key, value) in last {
            results.insert(key, set(key, value).await);
        }
        report(items.iter().map(|(key, _)| key), &results)
    }
}

/// The report on a batch in which a key may occur several times: each mention has the result of its key.
pub(super) fn report<'k>(
    keys: impl Iterator<Item = &'k Key>,
    results: &BTreeMap<&Key, Result<()>>,
) -> Result<BatchReport> {
    BatchReport::collect(keys.map(|key| (key, results[key].clone()))).settle()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::{Credential, CredentialStore, DEFAULT_DEADLINE, Outcome, StorageStats};

    /// Stores one credential in 3 s, whatever time is left.
    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<BTreeMap<Key, Credential>>>);

    impl Backend for Slow {
        fn label(&self) -> &'static str {
            "slow"
        }

        fn set_deadline(&mut self, _: Duration) {}

        async fn health(&self) -> Result<()> {
            Ok(())
        }

        async fn stats(&self) -> Result<StorageStats> {
            Ok(StorageStats::new("slow"))
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    fn missing(id: &Key) -> Error {
        Error::new(ErrorKind::NotFound, "missing").with_key(id)
    }

    impl CredentialStore for Slow {
        async fn get_credential(&self, id: &Key) -> Result<Credential> {
            sleep(Duration::from_secs(3)).await;
            self.0.lock().unwrap().get(id).cloned().ok_or_else(|| missing(id))
        }

        async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
            sleep(Duration::from_secs(3)).await;
            self.0.lock().unwrap().insert(id.clone(), credential.clone());
            Ok(())
        }

        async fn delete_credential(&self, id: &Key) -> Result<()> {
            sleep(Duration::from_secs(3)).await;
            self.0.lock().unwrap().remove(id).map(drop).ok_or_else(|| missing(id))
        }

        async fn list_credentials(&self) -> Result<Vec<Key>> {
            Ok(self.0.lock().unwrap().keys().cloned().collect())
        }
    }

    fn ids(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| Key::new(name).unwrap()).collect()
    }

    fn outcomes(report: &BatchReport) -> Vec<(usize, ErrorKind, Outcome)> {
        let failures = report.failures.iter();
        failures.map(|failure| (failure.index, failure.error.kind(), failure.error.outcome())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn items_share_one_deadline() {
        use ErrorKind::Timeout;
        use Outcome::{NotApplied, Unknown};
        let (slow, ids) = (Slow::default(), ids(&["a", "b", "c", "d", "e", "f"]));
        let one = Credential::try_from(json!({})).unwrap();
        let items: Vec<_> = ids.iter().map(|id| (id.clone(), one.clone())).collect();
        let begun = Instant::now();
        let report = slow.set_credentials(&items).await.unwrap();
        assert_eq!(begun.elapsed(), DEFAULT_DEADLINE);
        assert_eq!(report.succeeded, 3);
        let late = [(3, Timeout, Unknown), (4, Timeout, NotApplied), (5, Timeout, NotApplied)];
        assert_eq!(outcomes(&report), late);
        assert_eq!(slow.list_credentials().await.unwrap(), ids[..3]);
        let found = slow.get_credentials(&ids[..4]).await.unwrap();
        assert_eq!(found.values.len(), 3);
        assert_eq!(found.failures[0].error.outcome(), NotApplied, "a read");

        // A layer's deadline is that of the whole batch, too.
        let begun = Instant::now();
        let report = within(Duration::from_secs(5), WRITE, slow.delete_credentials(&ids)).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_millis(4_900));
        assert_eq!(report.succeeded, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn each_id_is_called_once() {
        let slow = Slow::default();
        let [one, two] = [1, 2].map(|n| Credential::try_from(json!({ "n": n })).unwrap());
        let [a, no] = ["a", "no"].map(|name| Key::new(name).unwrap());
        let begun = Instant::now();
        let report = slow.set_credentials(&[(a.clone(), one), (a.clone(), two.clone())]).await.unwrap();
        assert_eq!((report.succeeded, begun.elapsed().as_secs()), (2, 3));
        let ids = [no.clone(), a.clone(), no.clone(), a.clone()];
        let found = slow.get_credentials(&ids).await.unwrap();
        assert_eq!((found.values[&a].clone(), begun.elapsed().as_secs()), (two, 9));
        assert_eq!(found.failures.iter().map(|failure| failure.index).collect::<Vec<_>>(), [0, 2]);
        let report = slow.delete_credentials(&ids).await.unwrap();
        assert_eq!((report.succeeded, begun.elapsed().as_secs()), (2, 15));
        let missing = [0, 2].map(|index| (index, ErrorKind::NotFound, Outcome::NotApplied));
        assert_eq!(outcomes(&report), missing);
    }
}
