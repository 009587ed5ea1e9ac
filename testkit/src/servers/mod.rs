//! Real servers. If a program is missing, its tests fail: a skipped test proves nothing.

use std::{
    net::TcpListener,
    process::{self, Child, Command, Output},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

pub mod certificates;
pub mod commits;
#[cfg(feature = "storage")]
pub mod load;
pub mod mongodb;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod router;
#[cfg(feature = "storage")]
pub mod transactions;
pub mod wire;

/// A port on which nothing listens.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until a condition holds: up to a minute, because the machine may be busy.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a process to end, and returns its output. A process that does not end is killed, and the test
/// fails.
#[track_caller]
pub fn output_of(child: Child) -> Output {
    let (id, (told, heard)) = (child.id().to_string(), channel());
    thread::spawn(move || told.send(child.wait_with_output()));
    if let Ok(output) = heard.recv_timeout(Duration::from_secs(300)) {
        return output.unwrap();
    }
    drop(Command::new("kill").args(["-KILL", &id]).status());
    panic!("a process does not end: {:?}", heard.recv_timeout(Duration::from_secs(10)));
}

/// A program that starts with the default signal handlers, as in an interactive shell. The background jobs of
/// a script ignore SIGINT, and so do their children.
pub fn interruptible(program: &str) -> Command {
    if cfg!(not(target_os = "linux")) {
        return Command::new(program);
    }
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM,HUP,QUIT", program]);
    command
}

/// A prefix of keys that no other test uses.
pub fn prefix() -> String {
    format!("test-{}-{}:", process::id(), next())
}

fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The URL of an empty store on a Redis server that all tests of this process share.
pub fn redis() -> String {
    static SERVER: std::sync::LazyLock<redis::Server> =
        std::sync::LazyLock::new(|| redis::Server::start(&[]));
    format!("{}?prefix={}", SERVER.url(), prefix())
}

/// A PostgreSQL server that all tests of this process share, and PgBouncer before it, which pools
/// transactions.
fn shared() -> &'static (postgres::Server, postgres::PgBouncer) {
    static SERVERS: std::sync::LazyLock<(postgres::Server, postgres::PgBouncer)> =
        std::sync::LazyLock::new(|| {
            let server = postgres::Server::start(&[]);
            let pooler = postgres::PgBouncer::before(&server);
            (server, pooler)
        });
    &SERVERS
}

fn schema() -> String {
    format!("schema=test_{}_{}", process::id(), next())
}

/// The URL of an empty store on that server.
pub fn postgres() -> String {
    format!("{}&{}", shared().0.url(), schema())
}

/// As [`postgres()`], through PgBouncer.
pub fn pgbouncer() -> String {
    format!("{}&{}", shared().1.url(), schema())
}

/// The name of a database that no other test uses.
pub fn database() -> String {
    format!("test_{}_{}", process::id(), next())
}

/// The URL of an empty store on a standalone MongoDB server that all tests of this process share.
pub fn mongodb_alone() -> String {
    static SERVER: std::sync::LazyLock<mongodb::Server> =
        std::sync::LazyLock::new(|| mongodb::Server::start(&[]));
    SERVER.url(&database())
}

/// A replica set that all tests of this process share. It has one member: the tests of failovers start sets
/// of three.
pub fn mongodb_set() -> &'static mongodb::ReplicaSet {
    static SET: std::sync::LazyLock<mongodb::ReplicaSet> =
        std::sync::LazyLock::new(|| mongodb::ReplicaSet::start(1));
    &SET
}

/// The URL of an empty store on that replica set.
pub fn mongodb() -> String {
    mongodb_set().url(&database())
}
