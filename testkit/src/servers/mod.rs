//! Servers for tests. Where a program is missing its tests fail: a test that is skipped proves nothing.
#![allow(dead_code)]

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

#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod certificates;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod commits;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod load;
#[cfg(feature = "mongodb")]
pub(crate) mod mongodb;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
pub(crate) mod proxy;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "mongodb")]
pub(crate) mod router;
#[cfg(any(feature = "mongodb", feature = "postgres"))]
pub(crate) mod transactions;

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until something holds. Generous: the machine may be busy.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a process to end, and gives what it said. One that does not end is killed, and fails the test.
#[track_caller]
pub(crate) fn output_of(child: Child) -> Output {
    let (id, (told, heard)) = (child.id().to_string(), channel());
    thread::spawn(move || told.send(child.wait_with_output()));
    if let Ok(output) = heard.recv_timeout(Duration::from_secs(300)) {
        return output.unwrap();
    }
    drop(Command::new("kill").args(["-KILL", &id]).status());
    panic!("a process does not end: {:?}", heard.recv_timeout(Duration::from_secs(10)));
}

/// A program that starts with signals as a person's shell has them: what a script runs in the background ignores SIGINT,
/// and so does what that starts.
pub(crate) fn interruptible(program: &str) -> Command {
    if cfg!(not(target_os = "linux")) {
        return Command::new(program);
    }
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM,HUP,QUIT", program]);
    command
}

/// What no other test's keys begin with.
pub(crate) fn prefix() -> String {
    format!("test-{}-{}:", process::id(), next())
}

fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The URL of a store that is empty, on a Redis server that all tests of this process share.
#[cfg(feature = "redis")]
pub(crate) fn redis() -> String {
    static SERVER: std::sync::LazyLock<redis::Server> =
        std::sync::LazyLock::new(|| redis::Server::start(&[]));
    format!("{}?prefix={}", SERVER.url(), prefix())
}

/// A PostgreSQL server that all tests of this process share, and PgBouncer before it, which pools transactions.
#[cfg(feature = "postgres")]
fn shared() -> &'static (postgres::Server, postgres::PgBouncer) {
    static SERVERS: std::sync::LazyLock<(postgres::Server, postgres::PgBouncer)> =
        std::sync::LazyLock::new(|| {
            let server = postgres::Server::start(&[]);
            let pooler = postgres::PgBouncer::before(&server);
            (server, pooler)
        });
    &SERVERS
}

#[cfg(feature = "postgres")]
fn schema() -> String {
    format!("schema=test_{}_{}", process::id(), next())
}

/// The URL of a store that is empty.
#[cfg(feature = "postgres")]
pub(crate) fn postgres() -> String {
    format!("{}&{}", shared().0.url(), schema())
}

/// The same through PgBouncer.
#[cfg(feature = "postgres")]
pub(crate) fn pgbouncer() -> String {
    format!("{}&{}", shared().1.url(), schema())
}

/// A name that no other test uses.
#[cfg(feature = "mongodb")]
pub(crate) fn database() -> String {
    format!("test_{}_{}", process::id(), next())
}

/// The URL of a store that is empty, on a standalone MongoDB server that all tests of this process share.
#[cfg(feature = "mongodb")]
pub(crate) fn mongodb_alone() -> String {
    static SERVER: std::sync::LazyLock<mongodb::Server> =
        std::sync::LazyLock::new(|| mongodb::Server::start(&[]));
    SERVER.url(&database())
}

/// The same on a replica set. It has one member: the tests of failovers start sets of three.
#[cfg(feature = "mongodb")]
pub(crate) fn mongodb_set() -> &'static mongodb::ReplicaSet {
    static SET: std::sync::LazyLock<mongodb::ReplicaSet> =
        std::sync::LazyLock::new(|| mongodb::ReplicaSet::start(1));
    &SET
}

#[cfg(feature = "mongodb")]
pub(crate) fn mongodb() -> String {
    mongodb_set().url(&database())
}
