//! From every backend to every other one: what is there afterwards is what was there before, on both sides.
//!
//! A backend is one line in `from_each!` and one in `onto_each`.

use futures_util::stream::BoxStream;
use gateway_storage::{
    Exportable, File, FileConfig, Memory, RecordDigest, Storage,
    migrate::{CopyOptions, VerifyOptions, copy, verify},
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::records::{digest, hostile_records, of};

async fn memory() -> (Storage<Memory>, ()) {
    (Storage::open("memory:").await.unwrap(), ())
}

async fn file() -> (Storage<File>, TempDir) {
    let dir = TempDir::new().unwrap();
    (Storage::open(FileConfig::new(dir.path().join("data"))).await.unwrap(), dir)
}

#[cfg(feature = "mongodb")]
async fn mongodb() -> (Storage<gateway_storage::MongoDb>, ()) {
    (Storage::open(&*crate::servers::mongodb()).await.unwrap(), ())
}

#[cfg(feature = "postgres")]
async fn postgres() -> (Storage<gateway_storage::Postgres>, ()) {
    (Storage::open(&*crate::servers::postgres()).await.unwrap(), ())
}

#[cfg(feature = "redis")]
async fn redis() -> (Storage<gateway_storage::Redis>, ()) {
    (Storage::open(&*crate::servers::redis()).await.unwrap(), ())
}

/// Copies to a store, and compares both ways.
async fn onto<S: Exportable, T: Exportable>(source: &Storage<S>, target: Storage<T>, wanted: RecordDigest) {
    if source.label() == target.label() {
        return;
    }
    let pair = format!("{source:?} to {target:?}");
    // As the command does it: one type of source for all.
    let records: BoxStream<'_, _> = Box::pin(source.export());
    let report = copy(records, &target, &CopyOptions::default(), |_| ()).await.unwrap();
    let report = report.complete().unwrap_or_else(|error| panic!("{pair}: {error:?}"));
    assert!(report.tallies.total().written >= 5000, "{pair}: {}", report.tallies.total());

    let export: BoxStream<'_, _> = Box::pin(source.export());
    let others: BoxStream<'_, _> = Box::pin(target.export());
    let verified = verify(export, others, &VerifyOptions::default(), |_| ()).await.unwrap();
    assert!(verified.is_same(), "{pair}: {:?}", verified.total());
    assert_eq!(verified.total().same, report.tallies.total().written, "{pair}");
    assert_eq!((verified.source_digest, verified.target_digest), (wanted, wanted), "{pair}");
    target.close().await.unwrap();
}

async fn onto_each<S: Exportable>(source: Storage<S>) {
    static WANTED: OnceCell<RecordDigest> = OnceCell::const_new();
    let imported = source.import(of(hostile_records())).await.unwrap().complete().unwrap();
    assert!(imported >= 5000, "{imported}");
    // What a store without any tricks makes of the same.
    let wanted = async { digest(&crate::records::memory(hostile_records()).await).await };
    let wanted = *WANTED.get_or_init(|| wanted).await;
    assert_eq!(digest(&source).await, wanted, "{source:?} holds what was imported");

    onto(&source, memory().await.0, wanted).await;
    let (target, _kept) = file().await;
    onto(&source, target, wanted).await;
    #[cfg(feature = "mongodb")]
    onto(&source, mongodb().await.0, wanted).await;
    #[cfg(feature = "postgres")]
    onto(&source, postgres().await.0, wanted).await;
    #[cfg(feature = "redis")]
    onto(&source, redis().await.0, wanted).await;

    assert_eq!(digest(&source).await, wanted, "{source:?} is untouched");
    source.close().await.unwrap();
}

macro_rules! from_each {
    ($($test:ident: $open:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let (source, _kept) = $open().await;
            onto_each(source).await;
        }
    )*};
}

from_each! {
    from_file: file;
    from_memory: memory;
}

#[cfg(feature = "mongodb")]
from_each! {
    from_mongodb: mongodb;
}

#[cfg(feature = "postgres")]
from_each! {
    from_postgres: postgres;
}

#[cfg(feature = "redis")]
from_each! {
    from_redis: redis;
}
