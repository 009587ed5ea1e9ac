//! The servers that `tests/run` starts. Without one its tests fail: a test that is skipped proves nothing.
#![allow(dead_code, reason = "each of the tests that share it uses a part")]

use std::{
    env, process,
    sync::atomic::{AtomicU32, Ordering},
};

/// The Redis server, with a prefix that no other test has.
pub(crate) fn redis() -> String {
    let server = env::var("GATEWAY_STORAGE_TEST_REDIS").unwrap_or_else(|_| {
        panic!(
            "this test needs a Redis server: `tests/run` starts one, or set GATEWAY_STORAGE_TEST_REDIS to the URL of one \
             whose data may be lost (`redis-server --port 6399 --save ''`, then redis://localhost:6399)"
        )
    });
    format!("{server}?prefix=test-{}-{}:", process::id(), next())
}

/// The PostgreSQL server, with a schema that no other test has.
#[cfg(feature = "postgres")]
pub(crate) fn postgres() -> String {
    postgres_at("GATEWAY_STORAGE_TEST_POSTGRES")
}

/// The same server behind PgBouncer, which pools transactions.
#[cfg(feature = "postgres")]
pub(crate) fn pgbouncer() -> String {
    postgres_at("GATEWAY_STORAGE_TEST_PGBOUNCER") + "&pgbouncer=true"
}

#[cfg(feature = "postgres")]
fn postgres_at(variable: &str) -> String {
    let server = env::var(variable).unwrap_or_else(|_| {
        panic!(
            "this test needs a PostgreSQL server: `tests/run` starts one, and PgBouncer before it, or set {variable} to the URL \
             of a database whose data may be lost (postgres://user@localhost:5432/test)"
        )
    });
    format!("{server}?schema=test_{}_{}", process::id(), next())
}

fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
