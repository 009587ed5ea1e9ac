//! [`StorageStats`], [`Performance`] and [`PoolStats`]: the state of a store.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::time::rfc3339_millis;

/// The state of a store. The field names of its JSON are those that the Go program gcli2api-go used.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StorageStats {
    /// The backend's label: `"file"`, `"memory"`.
    pub backend: &'static str,
    /// Whether [`health`](crate::Backend::health) would succeed.
    pub healthy: bool,
    /// The number of open connections, for a backend with a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_count: Option<u64>,
    /// The number of credentials.
    pub credential_count: u64,
    /// The number of config values.
    pub config_count: u64,
    /// The number of usage records (keys, not counters).
    pub usage_record_count: u64,
    /// The size of the data on disk or in memory, in bytes, if the backend knows it.
    #[serde(rename = "total_size_bytes", skip_serializing_if = "Option::is_none")]
    pub total_size: Option<u64>,
    /// When the store was last backed up: the later of two times. The first is when an export through this
    /// [`Instrument`](crate::layer::Instrument) layer, or a clone of it, was last read to its end; exports of other
    /// processes are not known. The second, which `File` stores, is that of its last backup, by any process.
    /// As JSON in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time")]
    pub last_backup: Option<SystemTime>,
    /// The store's performance in the last minute. `None` without an [`Instrument`](crate::layer::Instrument)
    /// layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
    /// Values that only this backend has: versions, file format, queue length. No secrets, no keys.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
}

impl StorageStats {
    /// The stats of an empty and healthy store.
    #[must_use]
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            healthy: true,
            connection_count: None,
            credential_count: 0,
            config_count: 0,
            usage_record_count: 0,
            total_size: None,
            last_backup: None,
            performance: None,
            details: Map::new(),
        }
    }
}

/// The performance of a store in the last minute, as [`Instrument`](crate::layer::Instrument) measured it in
/// this process.
///
/// All operations are counted. Without a `tracing` subscriber and a `metrics` recorder only one in sixteen is
/// timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Performance {
    /// The average duration of a read. `None` if none was timed. As JSON in milliseconds.
    #[serde(rename = "average_read_latency_ms", serialize_with = "milliseconds")]
    pub average_read_latency: Option<Duration>,
    /// The average duration of a write. `None` if none was timed. As JSON in milliseconds.
    #[serde(rename = "average_write_latency_ms", serialize_with = "milliseconds")]
    pub average_write_latency: Option<Duration>,
    /// Operations of all kinds per second.
    pub operations_per_second: f64,
    /// The share of operations that failed, from 0 to 1. Errors that are an answer
    /// ([`NotFound`](crate::ErrorKind::NotFound)) or caused by the caller
    /// ([`Conflict`](crate::ErrorKind::Conflict), an invalid or too large value, an overflow) do not count.
    pub error_rate: f64,
    /// When an operation was last timed, in the last minute or earlier. As JSON in RFC 3339.
    #[serde(serialize_with = "time")]
    pub last_measurement: Option<SystemTime>,
}

fn milliseconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64() * 1e3).serialize(serializer)
}

fn time<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(rfc3339_millis).serialize(serializer)
}

/// The state of a connection pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolStats {
    /// The maximum number of connections.
    pub max: u32,
    /// The number of open connections.
    pub open: u32,
    /// The number of open connections that are unused.
    pub idle: u32,
    /// The number of callers that wait for a connection.
    pub waiting: u32,
}
