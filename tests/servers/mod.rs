//! The servers that `tests/run` starts. Without one its tests fail: a test that is skipped proves nothing.

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
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{server}?prefix=test-{}-{}:", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
