//! Servers for tests. Where a program is missing its tests fail: a test that is skipped proves nothing.
#![allow(dead_code)]

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};

#[cfg(feature = "redis")]
pub(crate) mod proxy;
#[cfg(feature = "redis")]
pub(crate) mod redis;

/// What no other test's keys begin with.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}:", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The URL of a store that is empty, on a Redis server that all tests of this process share.
#[cfg(feature = "redis")]
pub(crate) fn redis() -> String {
    static SERVER: std::sync::LazyLock<redis::Server> =
        std::sync::LazyLock::new(|| redis::Server::start(&[]));
    format!("{}?prefix={}", SERVER.url(), prefix())
}
