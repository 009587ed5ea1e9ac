//! Opens the stores.

use std::any::Any;

use gateway_storage::{
    Either, File, FileOptions, Git, GitOptions, Memory, MongoDb, Open, Postgres, Redis, Storage,
    scope::Scoped,
};
use tempfile::TempDir;
use testkit::servers::{self, mongodb::ReplicaSet, proxy::Proxy, wire::Protocol};
use tokio::runtime::{Builder, Runtime};

/// A store, and what it needs. Fields are dropped in this order.
pub(crate) struct Opened<B> {
    pub(crate) storage: Storage<B>,
    pub(crate) runtime: Runtime,
    pub(crate) proxy: Option<Proxy>,
    _kept: Box<dyn Any>,
}

fn local<B: Open>(options: B::Options, kept: impl Any) -> Opened<B> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let storage = runtime.block_on(async { Storage::new(B::open(options).await.expect("a store opens")) });
    Opened { storage, runtime, proxy: None, _kept: Box::new(kept) }
}

/// How calls reach a server: directly, or through a proxy that counts. `start` starts the server, gets a
/// function that returns the address for clients, and returns the URL of a store.
fn remote<B: Open, S: Any>(
    counted: Option<Protocol>,
    start: impl FnOnce(&dyn Fn(String) -> String) -> (S, String),
) -> Opened<B> {
    let Some(protocol) = counted else {
        let (server, url) = start(&|addr| addr);
        return local(B::Options::try_from(&url).expect("the URL of a store"), server);
    };
    // On a thread of its own, whose allocations are not counted.
    let relay = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = relay.block_on(Proxy::counting(String::new(), protocol));
    let (server, url) = start(&|addr| {
        proxy.lead_to(addr);
        proxy.addr.clone()
    });
    let options = B::Options::try_from(&url).expect("the URL of a store");
    Opened { proxy: Some(proxy), ..local(options, (relay, server)) }
}

pub(crate) fn file() -> Opened<File> {
    let folder = TempDir::new().unwrap();
    local(FileOptions::new(folder.path().join("data")), folder)
}

pub(crate) fn git() -> Opened<Git> {
    let folder = TempDir::new().unwrap();
    local(GitOptions::new(folder.path().join("data")), folder)
}

pub(crate) fn memory() -> Opened<Memory> {
    local("memory:".try_into().unwrap(), ())
}

/// One of two backends, which is `Memory`.
pub(crate) fn either() -> Opened<Either<File, Memory>> {
    around(memory(), |storage| Storage::new(Either::Right(storage.backend().clone())))
}

pub(crate) fn scoped() -> Opened<Scoped<Memory>> {
    around(memory(), |storage| storage.scoped("acme").unwrap())
}

fn around<A, B>(opened: Opened<A>, put: impl FnOnce(Storage<A>) -> Storage<B>) -> Opened<B> {
    let Opened { storage, runtime, proxy, _kept } = opened;
    Opened { storage: put(storage), runtime, proxy, _kept }
}

pub(crate) fn mongodb(is_counted: bool) -> Opened<MongoDb> {
    remote(is_counted.then_some(Protocol::MongoDb), |front| {
        let set = ReplicaSet::known_as(1, |server| front(server.addr()));
        let addr = front(set.members[0].addr());
        (set, format!("mongodb://{addr}/{}?replicaSet=rs0", servers::database()))
    })
}

pub(crate) fn postgres(is_counted: bool) -> Opened<Postgres> {
    remote(is_counted.then_some(Protocol::Postgres), |front| {
        let server = servers::postgres::Server::start(&[]);
        let addr = format!("127.0.0.1:{}", server.port);
        let url = server.url().replace(&addr, &front(addr.clone()));
        (server, url)
    })
}

pub(crate) fn redis(is_counted: bool) -> Opened<Redis> {
    remote(is_counted.then_some(Protocol::Redis), |front| {
        let server = servers::redis::Server::start(&[]);
        let url = format!("redis://{}", front(server.addr()));
        (server, url)
    })
}
