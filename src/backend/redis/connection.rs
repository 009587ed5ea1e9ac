//! One connection that many calls share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{RedisResult, Value, aio::MultiplexedConnection, cmd};
use tokio::time::Instant;

use super::{dial::Driver, pulse::Pulse};

/// A connection. It closes when the last call over it is done and its slot has another.
pub(super) struct Connection {
    driver: Driver,
    dead: Arc<AtomicBool>,
    pulse: Pulse,
    /// When it was last asked for its role, in milliseconds since it was opened.
    asked: AtomicU64,
}

/// A connection in use is asked for its role so often.
const ROLE_EVERY: Duration = Duration::from_secs(5);

impl Connection {
    pub(super) fn new(driver: Driver, dead: Arc<AtomicBool>, dialed: Duration) -> Self {
        Self { driver, dead, pulse: Pulse::new(Instant::now(), dialed), asked: AtomicU64::new(0) }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// No later call will use this connection. Those that wait on it go on waiting.
    pub(super) fn abandon(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The use of the connection by one call.
    pub(super) fn lease(self: Arc<Self>, now: Instant) -> Lease {
        let age = self.pulse.age(now).as_millis() as u64;
        if age.saturating_sub(self.asked.load(Ordering::Relaxed)) > ROLE_EVERY.as_millis() as u64 {
            self.ask_role(age);
        }
        self.pulse.begin(now);
        Lease { connection: self, replied: false }
    }

    /// Asks the server for its role, meanwhile: only a write is refused by one that has become a replica.
    #[cold]
    fn ask_role(&self, age: u64) {
        self.asked.store(age, Ordering::Relaxed);
        let (mut driver, dead) = (self.driver.requests(), self.dead.clone());
        tokio::spawn(async move {
            // Not every user may ask.
            if let Ok(Ok(false)) = tokio::time::timeout(ROLE_EVERY, is_master(&mut driver)).await {
                dead.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// Whether a server says that it is a master.
pub(super) async fn is_master(driver: &mut MultiplexedConnection) -> RedisResult<bool> {
    let role: Value = cmd("ROLE").query_async(driver).await?;
    let Value::Array(parts) = role else { return Ok(false) };
    Ok(matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"))
}

/// The use of a connection by one call: as long as it lives the call is in flight.
pub(super) struct Lease {
    connection: Arc<Connection>,
    replied: bool,
}

impl Lease {
    /// What sends the next request.
    pub(super) fn driver(&mut self) -> MultiplexedConnection {
        self.replied = false;
        self.connection.driver.requests()
    }

    pub(super) fn abandon(&self) {
        self.connection.abandon();
    }

    /// A reply to what was sent then came. Says whether it was a long time coming.
    pub(super) fn replied(&mut self, sent: Instant, now: Instant) -> bool {
        self.replied = true;
        self.connection.pulse.replied(sent, now)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.replied {
            self.connection.pulse.give_up(Instant::now());
        }
        self.connection.pulse.end();
    }
}
