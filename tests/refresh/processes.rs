//! Many processes on one server.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use gateway_storage::{Open, Storage};
use testkit::{
    provider::Answer,
    servers::{self, free_port, proxy::Proxy, until},
};

use crate::{
    fleet::Worker,
    number,
    places::{Place, id, print_waits, unexplained},
    random,
    refresh_one::{Ended, Refreshable},
    runtime,
};

/// A short lease of a store that answers at once, in milliseconds, and one of the others.
#[cfg(feature = "redis")]
const SHORT: u64 = 300;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
const LONGER: u64 = 1000;

/// The tokens that are refreshed while a process is paused or killed.
const ACCOUNTS: u64 = 50;

/// The longest time that the provider waits before a grant, and again after it.
const LATENCY: Duration = Duration::from_millis(60);

/// The processes that want these tokens.
const WORKERS: usize = 3;

/// Beyond the lease, what a survivor of a busy machine may need until it has refreshed a token.
const MARGIN: Duration = Duration::from_secs(60);

async fn open<B: Open>(url: &str) -> Storage<B> {
    Storage::new(B::open(url.try_into().unwrap()).await.expect("the store opens"))
}

fn start<B: Refreshable>(url: &str, place: &Place<B>, count: usize) -> Vec<Worker> {
    (0..count).map(|n| Worker::start(url, &place.job(&format!("worker-{n}")))).collect()
}

/// All processes want all tokens.
fn at_once<B: Open + Refreshable>(what: &str, url: &str) {
    let runtime = runtime();
    let place =
        runtime.block_on(async { Place::new(open::<B>(url).await, number("REFRESH_TOKENS", 100)).await });
    place.provider.set_latency(Duration::from_millis(20));
    let mut workers = start(url, &place, number("REFRESH_PROCESSES", 4));
    workers.iter_mut().for_each(|worker| worker.begin(1, place.accounts));
    let done: Vec<_> = workers.iter_mut().map(Worker::end).collect();
    runtime.block_on(place.check_one_each(&done));
    print_waits(what, done.concat());
}

/// A place for rounds in which a process is interrupted, with leases of this time or of `REFRESH_LEASE`.
async fn place_for_rounds<B: Open + Refreshable>(url: &str, lease: u64) -> Place<B> {
    let mut place = Place::new(open::<B>(url).await, ACCOUNTS).await;
    place.lease = Duration::from_millis(number("REFRESH_LEASE", lease));
    place.provider.set_latency(LATENCY);
    place
}

/// In each round a process is paused for longer than the lease.
fn paused<B: Open + Refreshable>(what: &str, url: &str, lease: u64) {
    let (runtime, mut random, rounds) = (runtime(), random(), number("REFRESH_ROUNDS", 3));
    let place = runtime.block_on(place_for_rounds::<B>(url, lease));
    let mut workers = start(url, &place, WORKERS);
    let (mut stops, mut others, mut revoked) = (0, 0, 0);
    for round in 1..=rounds {
        workers.iter_mut().for_each(|worker| worker.begin(round, ACCOUNTS));
        thread::sleep(place.lease.mul_f64(random.f64() * 0.7));
        let stopped = &mut workers[random.usize(..WORKERS)];
        stops += stopped.count_running(ACCOUNTS);
        let mut culprits = HashSet::from([stopped.client.clone()]);
        assert!(stopped.pause(place.lease * 3 / 2).wait().unwrap().success());
        for worker in &mut workers {
            for done in worker.end() {
                assert!(!matches!(done.ended, Ended::Failed(_)), "round {round}: {}", done.ended);
            }
            if worker.was_paused && culprits.insert(worker.client.clone()) {
                others += 1;
            }
        }
        let uses = place.provider.take_uses();
        assert_eq!(unexplained(&uses, &culprits), 0, "round {round}: processes that ran used a token twice");
        runtime.block_on(async {
            for account in place.check().await {
                place.log_in(account).await;
                revoked += 1;
            }
        });
    }
    let total = place.provider.total();
    println!(
        "{what}: {rounds} processes stopped, with {stops} refreshes that ran, and {others} delayed by the machine; \
         {} grants, {} reuses, {revoked} accounts revoked",
        total.grants, total.reuses
    );
    assert!(total.reuses <= stops as u64 + others * ACCOUNTS);
}

/// In each round a process is killed.
fn killed<B: Open + Refreshable>(what: &str, url: &str, lease: u64) {
    let (runtime, mut random, rounds) = (runtime(), random(), number("REFRESH_ROUNDS", 3));
    let place = runtime.block_on(place_for_rounds::<B>(url, lease));
    let mut workers = start(url, &place, WORKERS);
    let (mut stops, mut lost, mut longest) = (0, 0, Duration::ZERO);
    for round in 1..=rounds {
        workers.iter_mut().for_each(|worker| worker.begin(round, ACCOUNTS));
        thread::sleep(place.lease.mul_f64(random.f64() * 0.7));
        let mut killed = workers.swap_remove(random.usize(..WORKERS));
        stops += killed.count_running(ACCOUNTS);
        let killed_at = Instant::now();
        killed.kill();
        let mut culprits = HashSet::from([killed.client.clone()]);
        for worker in &mut workers {
            for done in worker.end() {
                assert!(!matches!(done.ended, Ended::Failed(_)), "round {round}: {}", done.ended);
            }
            if worker.was_paused {
                culprits.insert(worker.client.clone());
            }
        }
        longest = longest.max(killed_at.elapsed());
        let uses = place.provider.take_uses();
        assert_eq!(unexplained(&uses, &culprits), 0, "round {round}: processes that ran used a token twice");
        runtime.block_on(async {
            for account in place.check().await {
                // The provider's answer did not come to the store, and a survivor sent the spent token.
                let granted = uses.iter().any(|one| one.account == id(account) && one.granted.is_some());
                assert!(granted, "round {round}: account {account} is lost without a grant");
                place.log_in(account).await;
                lost += 1;
            }
        });
        workers.push(Worker::start(url, &place.job(&killed.client)));
    }
    println!(
        "{what}: {rounds} processes killed, with {stops} refreshes that ran; {lost} tokens lost between the \
         provider and the store; the others had refreshed all after {longest:.1?} at most"
    );
    assert!(longest < place.lease + MARGIN, "the lease of a killed process does not end: {longest:?}");
}

/// The store is cut, and then one that can be read and not written: the provider is not asked.
fn no_store<B: Open + Refreshable>(what: &str, url: &str, port: u16, refuse_writes: impl FnOnce()) {
    let runtime = runtime();
    let mut place = runtime.block_on(async { Place::new(open::<B>(url).await, 20).await });
    place.wait = Duration::from_secs(3);
    let proxy = runtime.block_on(Proxy::start(format!("127.0.0.1:{port}")));
    let through = url.replace(&format!("127.0.0.1:{port}"), &proxy.addr);
    assert_ne!(url, through);
    let (mut cut, mut whole) = (start(&through, &place, 2), start(url, &place, 2));

    proxy.lead_to(format!("127.0.0.1:{}", free_port()));
    while proxy.cut_one() > 0 {}
    let check = |workers: &mut Vec<Worker>, why: &str| {
        workers.iter_mut().for_each(|worker| worker.begin(1, place.accounts));
        for done in workers.iter_mut().flat_map(Worker::end) {
            assert!(matches!(done.ended, Ended::Failed(_)), "{why}: {}", done.ended);
        }
        assert_eq!(place.provider.total().requests, 0, "{why}: a token was spent");
    };
    check(&mut cut, "the store is cut");
    refuse_writes();
    check(&mut whole, "the store refuses writes");
    println!("{what}: no requests to the provider");
}

/// The store is cut after the grants, and comes back: the new tokens are stored.
fn store_comes_back<B: Open + Refreshable>(what: &str, url: &str, port: u16) {
    let runtime = runtime();
    let place = runtime.block_on(async { Place::new(open::<B>(url).await, 20).await });
    let server = format!("127.0.0.1:{port}");
    let proxy = runtime.block_on(Proxy::start(server.clone()));
    let through = url.replace(&server, &proxy.addr);
    assert_ne!(url, through);
    let mut workers = start(&through, &place, 1);
    let late = Answer::Late(Duration::from_millis(500));
    place.provider.plan((0..place.accounts).map(|_| late));
    workers[0].begin(1, place.accounts);
    until("all tokens are spent", || place.provider.total().grants == place.accounts);
    proxy.lead_to(format!("127.0.0.1:{}", free_port()));
    while proxy.cut_one() > 0 {}
    // Another process must wait for the new tokens.
    let mut others = start(url, &place, 1);
    others[0].begin(1, place.accounts);
    thread::sleep(2 * Duration::from_millis(500));
    proxy.lead_to(server);
    let done: Vec<_> = workers.iter_mut().chain(&mut others).map(Worker::end).collect();
    runtime.block_on(place.check_one_each(&done));
    print_waits(what, done.concat());
}

#[cfg(feature = "redis")]
pub(crate) mod redis {
    use gateway_storage::Redis;
    use testkit::servers::redis::Server;

    use super::servers;

    pub(crate) fn at_once() {
        super::at_once::<Redis>("Redis", &servers::redis());
    }

    pub(crate) fn paused() {
        super::paused::<Redis>("Redis", &servers::redis(), super::SHORT);
    }

    pub(crate) fn killed() {
        super::killed::<Redis>("Redis", &servers::redis(), super::SHORT);
    }

    pub(crate) fn no_store() {
        let server = Server::start(&[]);
        let url = format!("{}?deadline=2s", server.url());
        let refuse = || drop(server.raw().words("CONFIG SET min-replicas-to-write 1"));
        super::no_store::<Redis>("Redis", &url, server.port, refuse);
    }

    pub(crate) fn store_comes_back() {
        let server = Server::start(&[]);
        let url = format!("{}?deadline=2s", server.url());
        super::store_comes_back::<Redis>("Redis", &url, server.port);
    }
}

#[cfg(feature = "postgres")]
pub(crate) mod postgres {
    use gateway_storage::Postgres;
    use testkit::servers::postgres::Server;

    use super::servers;

    pub(crate) fn at_once() {
        super::at_once::<Postgres>("Postgres", &servers::postgres());
    }

    /// A store that keeps short leases under load.
    fn quick() -> String {
        format!("{}&pool_size=30", servers::postgres())
    }

    pub(crate) fn paused() {
        super::paused::<Postgres>("Postgres", &quick(), super::LONGER);
    }

    pub(crate) fn killed() {
        super::killed::<Postgres>("Postgres", &quick(), super::LONGER);
    }

    /// Another session holds a lock on each table that lets others read only.
    pub(crate) fn no_store() {
        let server = Server::start(&[]);
        let url = format!("{}&deadline=2s", server.url());
        let runtime = crate::runtime();
        let lock = "BEGIN; DO $$ DECLARE t regclass; BEGIN
            FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace::regnamespace::text !~ '^(pg_|info)'
            LOOP EXECUTE format('LOCK TABLE %s IN SHARE MODE', t); END LOOP; END $$";
        let mut session = None;
        let refuse = || {
            runtime.block_on(async {
                let config = format!("host=127.0.0.1 port={} user=tester dbname=postgres", server.port);
                let (client, connection) =
                    tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(lock).await.unwrap();
                // The lock ends with it.
                session = Some(client);
            });
        };
        super::no_store::<Postgres>("Postgres", &url, server.port, refuse);
        drop(session);
    }

    pub(crate) fn store_comes_back() {
        let server = Server::start(&[]);
        let url = format!("{}&deadline=2s", server.url());
        super::store_comes_back::<Postgres>("Postgres", &url, server.port);
    }
}

#[cfg(feature = "mongodb")]
pub(crate) mod mongodb {
    use gateway_storage::MongoDb;
    use mongodb::bson::doc;
    use testkit::servers::mongodb::Server;

    use super::servers;

    pub(crate) fn at_once() {
        super::at_once::<MongoDb>("MongoDb", &servers::mongodb());
    }

    /// A store that keeps short leases under load. The server lives on, so other writes need not wait for its
    /// disk.
    fn quick() -> String {
        let quick = "w=1&journal=false&readConcernLevel=local&maxPoolSize=50";
        format!("{}&{quick}", servers::mongodb())
    }

    pub(crate) fn paused() {
        super::paused::<MongoDb>("MongoDb", &quick(), super::LONGER);
    }

    pub(crate) fn killed() {
        super::killed::<MongoDb>("MongoDb", &quick(), super::LONGER);
    }

    pub(crate) fn no_store() {
        let server = Server::start(&[]);
        let url = server.url("no_store").replace("deadline=10s", "deadline=2s");
        let refuse = || drop(server.ask("admin", doc! { "fsync": 1, "lock": true }));
        super::no_store::<MongoDb>("MongoDb", &url, server.port, refuse);
    }

    /// The driver looks for a server that it lost every ten seconds.
    pub(crate) fn store_comes_back() {
        let server = Server::start(&[]);
        let url = server.url("comes_back").replace("deadline=10s", "deadline=2s");
        super::store_comes_back::<MongoDb>("MongoDb", &url, server.port);
    }
}
