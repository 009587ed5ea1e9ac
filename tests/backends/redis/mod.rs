//! Tests of Redis alone: its layout, its round trips, failures of its servers.

mod acl;
mod beside;
mod budgets;
mod calls;
mod conditional;
mod connections;
mod durability;
mod faults;
mod health;
mod layout;
mod lease;
mod login;
mod many;
mod passwords;
mod refusals;
mod streams;
mod tls;
mod topology;
mod watch;

use std::{
    collections::BTreeMap,
    io::Read,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use gateway_storage::{
    Credential, ErrorKind, Increment, Key, Outcome, Record, Redis, RedisOptions, Secret, Storage,
    layer::{Count, Retry},
};
use serde_json::json;
use testkit::servers::{
    self,
    proxy::Proxy,
    redis::{Cluster, Raw, Sentinels, Server, Tls},
};

type Result<T = ()> = gateway_storage::Result<T>;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// What a task counted of its own increments.
#[derive(Clone, Copy, Default)]
struct Tally {
    acknowledged: i64,
    unknown: i64,
    slowest: Duration,
}

impl Tally {
    fn add(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            unknown: self.unknown + other.unknown,
            slowest: self.slowest.max(other.slowest),
        }
    }

    /// Increments a counter until `times` increments are acknowledged or `running` is false.
    async fn of(storage: &Storage<Redis>, record: &str, times: i64, running: &AtomicBool) -> Self {
        let mut tally = Self::default();
        while tally.acknowledged < times && running.load(Ordering::SeqCst) {
            let begun = Instant::now();
            match storage.increment_usage(record, "n", 1).await {
                Ok(_) => tally.acknowledged += 1,
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    tally.unknown += i64::from(error.outcome() == Outcome::Unknown);
                }
            }
            tally.slowest = tally.slowest.max(begun.elapsed());
        }
        tally
    }
}
