//! Opens the stores: those with a server through a proxy that counts.

use std::any::Any;

use gateway_storage::{File, FileOptions, Git, GitOptions, Memory, MongoDb, Open, Postgres, Redis, Storage};
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

/// `start` starts a server, and returns it with the URL of a store behind the proxy.
fn remote<B: Open, S: Any>(protocol: Protocol, start: impl FnOnce(&Proxy) -> (S, String)) -> Opened<B> {
    // On a thread of its own, whose allocations are not counted.
    let relay = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = relay.block_on(Proxy::counting(String::new(), protocol));
    let (server, url) = start(&proxy);
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

pub(crate) fn mongodb() -> Opened<MongoDb> {
    remote(Protocol::MongoDb, |proxy| {
        let set = ReplicaSet::known_as(1, |server| {
            proxy.lead_to(server.addr());
            proxy.addr.clone()
        });
        (set, format!("mongodb://{}/{}?replicaSet=rs0", proxy.addr, servers::database()))
    })
}

pub(crate) fn postgres() -> Opened<Postgres> {
    remote(Protocol::Postgres, |proxy| {
        let server = servers::postgres::Server::start(&[]);
        let addr = format!("127.0.0.1:{}", server.port);
        let url = server.url().replace(&addr, &proxy.addr);
        proxy.lead_to(addr);
        (server, url)
    })
}

pub(crate) fn redis() -> Opened<Redis> {
    remote(Protocol::Redis, |proxy| {
        let server = servers::redis::Server::start(&[]);
        proxy.lead_to(server.addr());
        (server, format!("redis://{}", proxy.addr))
    })
}
