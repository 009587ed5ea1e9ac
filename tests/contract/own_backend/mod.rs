//! A backend outside this crate: the required operations of each capability, with public items only. It
//! passes the whole kit.
//!
//! **It is frozen**: it is written against version 0.1, and must never be edited to make it compile. If a
//! change of a trait breaks it, the change breaks every backend outside this crate.
//!
//! `docs/own-backend.md` explains it.

mod cache;
mod conditional;
mod config;
mod credential;
mod documents;
mod export;
mod lease;
mod plan;
mod transaction;
mod usage;
#[cfg(feature = "git")]
mod wrapper;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gateway_storage::{
    Backend, Credential, CredentialStore, Error, ErrorKind, Increment, Key, Open, Result, Storage,
    StorageStats, UsageRecord, conformance, history::DocumentKind, layer::Count,
};
use serde::Deserialize;
use serde_json::json;

use cache::Cache;
use documents::Documents;
use lease::LeaseMap;
use plan::Plans;

const LABEL: &str = "own";

/// A handle to a store in memory, under one lock.
#[derive(Clone, Default)]
struct Own {
    store: Arc<Mutex<Store>>,
    is_closed: Arc<AtomicBool>,
}

#[derive(Default)]
struct Store {
    documents: Documents,
    usage: BTreeMap<Key, UsageRecord>,
    cache: Cache,
    leases: LeaseMap,
    plans: Plans,
}

impl Own {
    fn lock(&self) -> Result<MutexGuard<'_, Store>> {
        let store = self.store.lock().unwrap();
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "the store is closed"));
        }
        Ok(store)
    }

    /// Opens the same store again.
    fn reopened(&self) -> Self {
        Self { store: self.store.clone(), is_closed: Arc::default() }
    }
}

impl Backend for Own {
    fn label(&self) -> &'static str {
        LABEL
    }

    // No operation waits.
    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        self.lock().map(drop)
    }

    async fn stats(&self) -> Result<StorageStats> {
        let (store, mut stats) = (self.lock()?, StorageStats::new(LABEL));
        stats.credential_count = store.documents.of(DocumentKind::Credential).count() as u64;
        stats.config_count = store.documents.of(DocumentKind::Config).count() as u64;
        stats.usage_record_count = store.usage.len() as u64;
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.is_closed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// No options: the URL is `own:`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnOptions {}

impl TryFrom<&str> for OwnOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        match url {
            "own:" => Ok(Self {}),
            _ => Err(Error::new(ErrorKind::InvalidValue, "the only URL is `own:`")),
        }
    }
}

impl Open for Own {
    type Options = OwnOptions;
    const SCHEMES: &'static [&'static str] = &["own"];

    async fn open(_: OwnOptions) -> Result<Self> {
        Ok(Self::default())
    }
}

/// One test for each part of the kit.
macro_rules! passes {
    ([$($capability:ident)*], [$($promise:ident)*], [$($kept:ident)*]) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $capability() {
            let storage = Storage::<Own>::open("own:").await.unwrap();
            conformance::$capability(&storage).await;
            storage.clone().close().await.unwrap();
            conformance::closed::$capability(&storage).await;
        })*

        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            conformance::$promise(&Storage::<Own>::open("own:").await.unwrap()).await;
        })*

        mod restart {
            use super::*;

            $(#[tokio::test]
            async fn $kept() {
                let own = Own::default();
                let open = || std::future::ready(Storage::new(own.reopened()));
                conformance::restart::$kept(open).await;
            })*
        }
    };
}

passes!(
    [credentials configs conditional leases plans usage cache transactions export],
    [backend conditional_plans conditional_transactions conditional_import export_usage export_snapshot transactions_at_close],
    [credentials configs leases plans usage]
);

#[tokio::test]
async fn a_layer_sees_one_call_of_a_default_body() {
    let (count, key) = (Count::default(), |name: &str| Key::new(name).unwrap());
    let storage = Storage::new(Own::default()).layer(count.clone());
    let items = ["a", "b"].map(|id| (key(id), Credential::try_from(json!({ "id": id })).unwrap()));
    let ids = items.clone().map(|(id, _)| id);
    assert_eq!(storage.set_credentials(&items).await.unwrap().succeeded, 2);
    assert_eq!(storage.get_credentials(&ids).await.unwrap().values, items.into_iter().collect());
    assert_eq!(storage.delete_credentials(&ids).await.unwrap().succeeded, 2);
    let steps = ids.map(|id| Increment::new(&id, &key("n"), 1));
    assert_eq!(storage.increment_many(&steps).await.unwrap().totals, [Some(1); 2]);
    storage.set_cache("a", "x", Duration::from_secs(60)).await.unwrap();
    assert_eq!(storage.get_cache("a").await.unwrap(), b"x");
    let transaction = storage.begin().await.unwrap();
    transaction.rollback().await.unwrap();
    let called = ["set_credentials", "get_credentials", "delete_credentials", "increment_many", "set_cache"];
    let called = called.into_iter().chain(["get_cache", "begin", "rollback"]).map(|name| (name, 1));
    assert_eq!(count.all(), called.collect());
    assert!(storage.backend().inner().list_credentials().await.unwrap().is_empty());
}
