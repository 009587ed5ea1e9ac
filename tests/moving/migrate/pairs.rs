//! Copies from every backend to every other backend: afterwards both have the records of the source.
//!
//! Each backend has one line in `from_each!` and one in `onto_each`. A backend that does not store all kinds
//! of records has its own `Load`.

use futures_util::{StreamExt, stream::BoxStream};
use gateway_storage::{
    Exportable, File, FileOptions, Memory, RecordKind, Storage,
    archive::RecordDigest,
    migrate::{CopyOptions, Filter, VerifyOptions, copy, verify},
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::records::{digest, hostile_records, of};

async fn memory() -> (Storage<Memory>, ()) {
    (Storage::open("memory:").await.unwrap(), ())
}

async fn file() -> (Storage<File>, TempDir) {
    let dir = TempDir::new().unwrap();
    (Storage::open(FileOptions::new(dir.path().join("data"))).await.unwrap(), dir)
}

#[cfg(feature = "mongodb")]
async fn mongodb() -> (Storage<gateway_storage::MongoDb>, ()) {
    (Storage::open(&*super::servers::mongodb()).await.unwrap(), ())
}

#[cfg(feature = "postgres")]
async fn postgres() -> (Storage<gateway_storage::Postgres>, ()) {
    (Storage::open(&*super::servers::postgres()).await.unwrap(), ())
}

#[cfg(feature = "redis")]
async fn redis() -> (Storage<gateway_storage::Redis>, ()) {
    (Storage::open(&*super::servers::redis()).await.unwrap(), ())
}

#[cfg(feature = "git")]
async fn git() -> (Storage<gateway_storage::Git>, TempDir) {
    let dir = TempDir::new().unwrap();
    (Storage::open(gateway_storage::GitOptions::new(dir.path().join("data"))).await.unwrap(), dir)
}

/// The records to move.
#[derive(Clone)]
struct Load {
    filter: Filter,
    count: u64,
    /// The digest of a `Memory` store with these records.
    digest: RecordDigest,
}

impl Load {
    async fn of(kinds: &[RecordKind]) -> Self {
        let mut filter = Filter::default();
        filter.kinds = kinds.to_vec();
        let mut records = hostile_records();
        records.retain(|record| filter.allows(record));
        let plain = super::records::memory(records).await;
        let count = plain.export().count().await as u64;
        Self { filter, count, digest: digest(&plain).await }
    }

    async fn everything() -> Self {
        static LOAD: OnceCell<Load> = OnceCell::const_new();
        let load = LOAD.get_or_init(|| Self::of(&[])).await;
        assert!(load.count >= 5000, "{}", load.count);
        load.clone()
    }

    /// The records of the kinds that Git stores.
    #[cfg(feature = "git")]
    async fn without_usage() -> Self {
        static LOAD: OnceCell<Load> = OnceCell::const_new();
        let load = LOAD.get_or_init(|| Self::of(&[RecordKind::Credential, RecordKind::Config])).await;
        assert!(load.count >= 3000, "{}", load.count);
        load.clone()
    }
}

/// Copies to a store, and compares both ways.
async fn onto<S: Exportable, T: Exportable>(source: &Storage<S>, target: Storage<T>, load: &Load) {
    if source.label() == target.label() {
        return;
    }
    let pair = format!("{source:?} to {target:?}");
    // The stream is boxed, as in the command, so that `copy` is compiled once per target.
    let records: BoxStream<'_, _> = Box::pin(source.export());
    let options = CopyOptions::default().with_filter(load.filter.clone());
    let report = copy(records, &target, &options, |_| ()).await.unwrap();
    let report = report.complete().unwrap_or_else(|error| panic!("{pair}: {error:?}"));
    assert_eq!(report.tallies.total().written, load.count, "{pair}: {}", report.tallies.total());

    let export: BoxStream<'_, _> = Box::pin(source.export());
    let others: BoxStream<'_, _> = Box::pin(target.export());
    let options = VerifyOptions::default().with_filter(load.filter.clone());
    let verified = verify(export, others, &options, |_| ()).await.unwrap();
    assert!(verified.is_same(), "{pair}: {:?}", verified.total());
    assert_eq!(verified.total().same, load.count, "{pair}");
    assert_eq!((verified.source_digest, verified.target_digest), (load.digest, load.digest), "{pair}");
    assert_eq!(digest(&target).await, load.digest, "{pair}: the target has other records");
    target.close().await.unwrap();
}

async fn onto_each<S: Exportable>(source: Storage<S>, load: Load) {
    let mut records = hostile_records();
    records.retain(|record| load.filter.allows(record));
    let imported = source.import(of(records)).await.unwrap().complete().unwrap();
    assert!(imported as u64 >= load.count, "{imported}");
    assert_eq!(digest(&source).await, load.digest, "{source:?} has the imported records");

    onto(&source, memory().await.0, &load).await;
    let (target, _kept) = file().await;
    onto(&source, target, &load).await;
    #[cfg(feature = "git")]
    {
        let (target, _kept) = git().await;
        onto(&source, target, &Load::without_usage().await).await;
    }
    #[cfg(feature = "mongodb")]
    onto(&source, mongodb().await.0, &load).await;
    #[cfg(feature = "postgres")]
    onto(&source, postgres().await.0, &load).await;
    #[cfg(feature = "redis")]
    onto(&source, redis().await.0, &load).await;

    assert_eq!(digest(&source).await, load.digest, "{source:?} is unchanged");
    source.close().await.unwrap();
}

macro_rules! from_each {
    ($($test:ident: $open:ident, $load:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let (source, _kept) = $open().await;
            onto_each(source, Load::$load().await).await;
        }
    )*};
}

from_each! {
    from_file: file, everything;
    from_memory: memory, everything;
}

#[cfg(feature = "git")]
from_each! {
    from_git: git, without_usage;
}

#[cfg(feature = "mongodb")]
from_each! {
    from_mongodb: mongodb, everything;
}

#[cfg(feature = "postgres")]
from_each! {
    from_postgres: postgres, everything;
}

#[cfg(feature = "redis")]
from_each! {
    from_redis: redis, everything;
}
