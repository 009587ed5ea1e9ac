//! Every backend passes the conformance kit, bare and under the full stack of layers.
//!
//! Meanwhile all logs, spans and metrics are searched for the keys and values that the kit stored.
//!
//! One line per backend: the function that opens an empty store, the capabilities, and further promises.

#![cfg(all(feature = "conformance", feature = "file", feature = "memory"))]

use gateway_storage::{
    Either, File, FileOptions, Memory, Sharing, Storage, conformance, either::EitherOptions, layer::Count,
    scope::Scoped,
};
use tempfile::TempDir;
use testkit::{listener, turns::Turns, workload::stacked};

async fn memory() -> (Storage<Memory>, ()) {
    (Storage::open("memory:").await.expect("memory opens"), ())
}

async fn file() -> (Storage<File>, TempDir) {
    let dir = TempDir::new().expect("a directory");
    (open_file(&dir).await, dir)
}

async fn open_file(dir: &TempDir) -> Storage<File> {
    open_as(dir, Sharing::default()).await
}

async fn open_as(dir: &TempDir, shared: Sharing) -> Storage<File> {
    let options = FileOptions::new(dir.path().join("data")).with_shared(shared);
    Storage::open(options).await.expect("a file store opens")
}

async fn file_exclusive() -> (Storage<File>, TempDir) {
    let dir = memory_dir();
    (open_as(&dir, Sharing::Exclusive).await, dir)
}

async fn file_single_writer() -> (Storage<File>, TempDir) {
    let dir = memory_dir();
    (open_as(&dir, Sharing::SingleWriter).await, dir)
}

/// Two handles that write to one store, and take turns.
async fn file_two() -> (Storage<Turns<File>>, TempDir) {
    let dir = memory_dir();
    let handles = [open_file(&dir).await, open_file(&dir).await];
    (Storage::new(Turns::new(handles.map(|handle| handle.backend().clone()).into())), dir)
}

/// In a memory file system where there is one, because thousands of commits would wait for a disk.
fn memory_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory")
}

#[cfg(feature = "git")]
async fn git() -> (Storage<gateway_storage::Git>, TempDir) {
    let dir = memory_dir();
    (open_git(&dir).await, dir)
}

#[cfg(feature = "git")]
async fn open_git(dir: &TempDir) -> Storage<gateway_storage::Git> {
    let options = gateway_storage::GitOptions::new(dir.path().join("data")).with_deadline(LONG_DEADLINE);
    Storage::open(options).await.expect("a Git store opens")
}

/// A store with a bare remote, to which every write is pushed before it is acknowledged.
#[cfg(feature = "git")]
async fn git_shared() -> (Storage<gateway_storage::Git>, TempDir) {
    let dir = memory_dir();
    let remote = dir.path().join("remote.git");
    git2::Repository::init_bare(&remote).expect("a bare repository");
    let options = gateway_storage::GitOptions::new(dir.path().join("data"))
        .with_remote(remote.to_str().expect("a plain path"))
        .with_deadline(LONG_DEADLINE);
    (Storage::open(options).await.expect("a Git store opens"), dir)
}

#[cfg(feature = "redis")]
mod on_redis {
    use std::sync::LazyLock;

    use gateway_storage::{Redis, Storage};

    use testkit::servers::{
        self, prefix,
        redis::{Cluster, Sentinels, Tls},
    };

    pub(crate) async fn open_redis(url: &str) -> Storage<Redis> {
        Storage::open(url).await.expect("a Redis store opens")
    }

    async fn opened(url: String) -> (Storage<Redis>, String) {
        (open_redis(&url).await, url)
    }

    pub(crate) async fn redis() -> (Storage<Redis>, String) {
        opened(servers::redis()).await
    }

    pub(crate) async fn redis_tls() -> (Storage<Redis>, String) {
        static SERVER: LazyLock<Tls> = LazyLock::new(Tls::start);
        opened(format!("{}&prefix={}", SERVER.url(), prefix())).await
    }

    pub(crate) async fn redis_cluster() -> (Storage<Redis>, String) {
        static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(3, 0));
        opened(format!("{}?prefix={}", CLUSTER.url(), prefix())).await
    }

    /// After a failover.
    pub(crate) async fn redis_sentinel() -> (Storage<Redis>, String) {
        static SENTINELS: LazyLock<Sentinels> = LazyLock::new(|| {
            let mut sentinels = Sentinels::start();
            sentinels.fail_over();
            sentinels
        });
        opened(format!("{}?prefix={}", SENTINELS.url(), prefix())).await
    }
}
#[cfg(feature = "redis")]
use on_redis::{open_redis, redis, redis_cluster, redis_sentinel, redis_tls};

#[cfg(feature = "postgres")]
async fn postgres() -> (Storage<gateway_storage::Postgres>, String) {
    let url = testkit::servers::postgres();
    (open_postgres(&url).await, url)
}

#[cfg(feature = "postgres")]
async fn pgbouncer() -> (Storage<gateway_storage::Postgres>, String) {
    let url = testkit::servers::pgbouncer();
    (open_postgres(&url).await, url)
}

#[cfg(feature = "postgres")]
async fn open_postgres(url: &str) -> Storage<gateway_storage::Postgres> {
    Storage::open(url).await.expect("a PostgreSQL store opens")
}

#[cfg(feature = "mongodb")]
async fn mongodb() -> (Storage<gateway_storage::MongoDb>, String) {
    let url = testkit::servers::mongodb();
    (open_mongodb(&url).await, url)
}

#[cfg(feature = "mongodb")]
async fn mongodb_alone() -> (Storage<gateway_storage::MongoDb>, String) {
    let url = testkit::servers::mongodb_alone();
    (open_mongodb(&url).await, url)
}

#[cfg(feature = "mongodb")]
async fn open_mongodb(url: &str) -> Storage<gateway_storage::MongoDb> {
    Storage::open(url).await.expect("a MongoDB store opens")
}

/// One of two backends, which is the first one.
async fn either_memory() -> (Storage<Either<Memory, File>>, ()) {
    (Storage::open("memory:").await.expect("memory opens"), ())
}

/// One of two backends, which is the second one.
async fn either_file() -> (Storage<Either<Memory, File>>, TempDir) {
    let dir = TempDir::new().expect("a directory");
    let options = EitherOptions::Right(FileOptions::new(dir.path().join("data")));
    (Storage::open(options).await.expect("a file store opens"), dir)
}

/// Two backends with transactions and a cache.
async fn either_of_memory() -> (Storage<Either<Memory, Memory>>, ()) {
    (Storage::new(Either::Right(memory().await.0.backend().clone())), ())
}

/// One scope of a store.
async fn scoped() -> (Storage<Scoped<Memory>>, ()) {
    (memory().await.0.scoped("acme").expect("a scope"), ())
}

macro_rules! conforms {
    ($backend:ident, $capabilities:tt, $promises:tt) => {
        mod $backend {
            cases!(bare, $backend, |storage| storage, $capabilities, $promises);
            cases!(stacked, $backend, |storage| stacked(storage), $capabilities, $promises);
        }
    };
}

macro_rules! cases {
    ($name:ident, $open:ident, |$storage:ident| $layered:expr, [$($capability:ident)*], [$($promise:ident)*]) => {
        mod $name {
            #[allow(unused_imports)]
            use crate::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $capability() {
                listener::install();
                let ($storage, _kept) = $open().await;
                let storage = $layered;
                conformance::$capability(&storage).await;
                storage.clone().close().await.expect("close");
                conformance::closed::$capability(&storage).await;
                listener::assert_no_leaks();
            })*

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $promise() {
                let ($storage, _kept) = $open().await;
                conformance::$promise(&$layered).await;
            })*
        }
    };
}

conforms!(memory, [credentials configs conditional leases plans usage cache transactions export watch], [backend conditional_plans conditional_transactions conditional_import export_usage export_snapshot transactions_at_close watch_conditional watch_plans watch_transactions watch_import watch_at_close]);
// Several layers on one another, on one backend only, because they take long to compile.
mod memory_deep {
    cases!(
        three,
        memory,
        |storage| storage.layer(Count::default()).layer(Count::default()).layer(Count::default()),
        [credentials configs plans usage cache transactions export],
        [backend export_usage]
    );
}
conforms!(file, [credentials configs conditional leases plans usage export watch], [backend conditional_plans conditional_import export_usage export_snapshot watch_conditional watch_plans watch_import watch_at_close]);
// `file` has the default mode, in which other processes can write.
mod file_modes {
    cases!(exclusive, file_exclusive, |storage| storage, [credentials configs conditional leases plans usage export watch], [backend conditional_plans conditional_import export_usage export_snapshot watch_conditional watch_plans watch_import watch_at_close]);
    cases!(single_writer, file_single_writer, |storage| storage, [credentials configs conditional leases plans usage export watch], [backend conditional_plans conditional_import export_usage export_snapshot watch_conditional watch_plans watch_import watch_at_close]);
    cases!(two_handles, file_two, |storage| storage, [credentials configs conditional leases plans usage export watch], [backend conditional_plans conditional_import export_usage export_snapshot watch_conditional watch_plans watch_import watch_at_close]);
}
conforms!(either_memory, [credentials configs conditional leases plans usage export watch], [backend conditional_plans conditional_import export_usage export_snapshot watch_conditional watch_plans watch_import watch_at_close]);
conforms!(either_file, [credentials configs conditional leases plans usage export watch], [backend conditional_plans conditional_import export_usage export_snapshot watch_conditional watch_plans watch_import watch_at_close]);
mod either_transactions {
    cases!(bare, either_of_memory, |storage| storage, [transactions cache watch], [conditional_transactions transactions_at_close watch_at_close]);
}
// Its keys are shorter.
mod scoped {
    cases!(bare, scoped, |storage| storage, [credentials configs conditional leases plans usage cache transactions export watch], [backend conditional_plans conditional_transactions conditional_import export_usage export_snapshot transactions_at_close watch_conditional watch_plans watch_transactions watch_import watch_at_close]);
    cases!(stacked, scoped, |storage| stacked(storage), [credentials plans transactions], []);
}
/// Each write is one commit, so the last of thousands of concurrent writes waits long.
#[cfg(feature = "git")]
const LONG_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);
#[cfg(feature = "git")]
mod git {
    cases!(
        stacked,
        git,
        |storage| testkit::workload::stacked_within(storage, gateway_storage::layer::Timeout::new(LONG_DEADLINE)),
        [credentials configs conditional export watch],
        [backend conditional_import export_snapshot watch_conditional watch_import watch_at_close]
    );
    cases!(bare, git, |storage| storage, [credentials configs conditional export watch], [backend conditional_import export_snapshot watch_conditional watch_import watch_at_close]);
    cases!(shared, git_shared, |storage| storage, [credentials configs conditional export watch], [backend conditional_import watch_conditional watch_import watch_at_close]);
}
#[cfg(feature = "mongodb")]
conforms!(mongodb, [credentials configs conditional leases plans usage transactions export watch], [backend conditional_plans conditional_transactions conditional_import export_usage transactions_at_close watch_conditional watch_plans watch_transactions watch_import watch_at_close]);
#[cfg(feature = "mongodb")]
conforms!(mongodb_alone, [credentials configs conditional leases plans usage export], [backend conditional_plans conditional_import export_usage]);
#[cfg(feature = "redis")]
conforms!(redis, [credentials configs conditional leases plans usage cache export watch], [backend conditional_plans conditional_import export_usage watch_conditional watch_plans watch_import watch_at_close]);
#[cfg(feature = "redis")]
conforms!(redis_tls, [credentials configs conditional leases plans usage cache export watch], [backend conditional_plans conditional_import export_usage watch_conditional watch_plans watch_import watch_at_close]);
#[cfg(feature = "redis")]
conforms!(redis_cluster, [credentials configs conditional leases plans usage cache export watch], [backend conditional_plans conditional_import export_usage watch_conditional watch_plans watch_import watch_at_close]);
#[cfg(feature = "redis")]
conforms!(redis_sentinel, [credentials configs conditional leases plans usage cache export watch], [backend conditional_plans conditional_import export_usage watch_conditional watch_plans watch_import watch_at_close]);
#[cfg(feature = "postgres")]
conforms!(postgres, [credentials configs conditional leases plans usage transactions export watch], [backend conditional_plans conditional_transactions conditional_import export_usage transactions_at_close watch_conditional watch_plans watch_transactions watch_import watch_at_close]);
#[cfg(feature = "postgres")]
conforms!(pgbouncer, [credentials configs conditional leases plans usage transactions export watch], [backend conditional_plans conditional_transactions conditional_import export_usage transactions_at_close watch_conditional watch_plans watch_transactions watch_import watch_at_close]);

/// One test per persistent backend and capability, with a restart.
macro_rules! keeps {
    ($($test:ident: $capability:ident of $new:ident, $open:ident;)*) => {$(
        #[tokio::test]
        async fn $test() {
            let (first, kept) = $new().await;
            first.close().await.expect("close");
            conformance::restart::$capability(|| $open(&kept)).await;
        }
    )*};
}

keeps! {
    file_keeps_credentials: credentials of file, open_file;
    file_keeps_configs: configs of file, open_file;
    file_keeps_leases: leases of file, open_file;
    file_keeps_plans: plans of file, open_file;
    file_keeps_usage: usage of file, open_file;
}

#[cfg(feature = "git")]
keeps! {
    git_keeps_credentials: credentials of git, open_git;
    git_keeps_configs: configs of git, open_git;
}

#[cfg(feature = "redis")]
keeps! {
    redis_keeps_credentials: credentials of redis, open_redis;
    redis_keeps_configs: configs of redis, open_redis;
    redis_keeps_leases: leases of redis, open_redis;
    redis_keeps_plans: plans of redis, open_redis;
    redis_keeps_usage: usage of redis, open_redis;
}

#[cfg(feature = "postgres")]
keeps! {
    postgres_keeps_credentials: credentials of postgres, open_postgres;
    postgres_keeps_configs: configs of postgres, open_postgres;
    postgres_keeps_leases: leases of postgres, open_postgres;
    postgres_keeps_plans: plans of postgres, open_postgres;
    postgres_keeps_usage: usage of postgres, open_postgres;
}

#[cfg(feature = "mongodb")]
keeps! {
    mongodb_keeps_credentials: credentials of mongodb, open_mongodb;
    mongodb_keeps_configs: configs of mongodb, open_mongodb;
    mongodb_keeps_leases: leases of mongodb, open_mongodb;
    mongodb_keeps_plans: plans of mongodb, open_mongodb;
    mongodb_keeps_usage: usage of mongodb, open_mongodb;
}
