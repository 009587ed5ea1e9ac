//! The pool's gauges, sampled by a task.

use std::{pin::pin, time::Duration};

use futures_util::future::select;
use metrics::{Key, Label, with_recorder};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    Instrument, Table,
    meters::{CONNECTIONS, MAX_CONNECTIONS, METADATA, PENDING_REQUESTS},
};
use crate::{ErrorKind, PoolStats, Pooled};

/// How often [`Storage::instrumented_pool`](crate::Storage::instrumented_pool) samples a pool: every 10 s.
pub const POOL_INTERVAL: Duration = Duration::from_secs(10);

impl Instrument {
    /// Also reports the backend's pool: a task samples it, at once and then on this interval.
    ///
    /// The task ends, and sets the gauges to 0, when the storage is closed through this layer or its last
    /// handle is dropped.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    #[must_use]
    pub fn sample_pool<B: Pooled>(self, backend: &B, interval: Duration) -> Self {
        let gauges = Gauges::new(&self.0.table);
        tokio::spawn(sample(backend.clone(), gauges, self.0.closed.subscribe(), interval));
        self
    }
}

async fn sample<B: Pooled>(backend: B, gauges: Gauges, mut closed: watch::Receiver<()>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sampling = async {
        loop {
            ticks.tick().await;
            match backend.pool_stats().await {
                Ok(stats) => gauges.set(stats),
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(_) => {}
            }
        }
    };
    // Changed by `close`; an error when the last handle is dropped.
    select(pin!(sampling), pin!(closed.changed())).await;
    gauges.set(PoolStats::default());
}

/// Looked up at each sample, because the recorder may be installed later. Samples are rare.
struct Gauges {
    labels: Vec<Label>,
}

impl Gauges {
    fn new(table: &Table) -> Self {
        let pool = match &table.namespace {
            Some(namespace) => format!("{}/{namespace}", table.system),
            None => table.system.to_string(),
        };
        let mut labels = table.labels();
        labels.push(Label::new("db.client.connection.pool.name", pool));
        Self { labels }
    }

    fn set(&self, PoolStats { max, open, idle, waiting }: PoolStats) {
        let set = |name, state: Option<&'static str>, value: u32| {
            let state = state.map(|state| Label::from_static_parts("db.client.connection.state", state));
            let key = Key::from_parts(name, self.labels.iter().cloned().chain(state).collect::<Vec<_>>());
            with_recorder(|recorder| recorder.register_gauge(&key, &METADATA)).set(value);
        };
        set(CONNECTIONS, Some("used"), open.saturating_sub(idle));
        set(CONNECTIONS, Some("idle"), idle);
        set(MAX_CONNECTIONS, None, max);
        set(PENDING_REQUESTS, None, waiting);
    }
}
