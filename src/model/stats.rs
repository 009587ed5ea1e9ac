//! What a storage says of itself.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::codec::rfc3339_millis;

/// The state of a storage. Serializes to JSON under the field names that the Go module used.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StorageStats {
    /// The backend's label: `"file"`, `"memory"`.
    pub backend: &'static str,
    /// Whether [`health`](crate::Backend::health) would say yes.
    pub healthy: bool,
    /// Open connections, for a backend that has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_count: Option<u64>,
    /// How many credentials there are.
    pub credential_count: u64,
    /// How many config values there are.
    pub config_count: u64,
    /// How many usage records there are (keys, not counters).
    pub usage_record_count: u64,
    /// What the data takes on disk or in memory, in bytes, where the backend knows.
    #[serde(rename = "total_size_bytes", skip_serializing_if = "Option::is_none")]
    pub total_size: Option<u64>,
    /// When an export through this [`Instrument`](crate::Instrument), or a clone of it, was last read to its end. None without
    /// that layer, and none at the beginning of a process: backups that others made are not known. As JSON in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "time")]
    pub last_backup: Option<SystemTime>,
    /// What the last minute was like, if [`Instrument`](crate::Instrument) is there to see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
    /// What only this backend has: versions, file format, queue length. No secrets, no keys.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
}

impl StorageStats {
    /// Empty and healthy stats of this backend.
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

/// What the last minute of a store was like, as [`Instrument`](crate::Instrument) saw it, for this process.
///
/// With neither a subscriber nor a recorder one operation in sixteen is timed; all are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Performance {
    /// How long a read took, on average. None if none was timed. As JSON in milliseconds.
    #[serde(rename = "average_read_latency_ms", serialize_with = "milliseconds")]
    pub average_read_latency: Option<Duration>,
    /// How long a write took, on average. None if none was timed. As JSON in milliseconds.
    #[serde(rename = "average_write_latency_ms", serialize_with = "milliseconds")]
    pub average_write_latency: Option<Duration>,
    /// Operations of every kind.
    pub operations_per_second: f64,
    /// The share of operations that failed, from 0 to 1. An answer ([`NotFound`](crate::ErrorKind::NotFound)) and a mistake of the
    /// caller ([`Conflict`](crate::ErrorKind::Conflict), an invalid or too large value, an overflow) is no failure.
    pub error_rate: f64,
    /// When an operation was last timed, in this minute or earlier. As JSON in RFC 3339.
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
    /// The most connections the pool may hold.
    pub max: u32,
    /// Connections that are open.
    pub open: u32,
    /// Open connections that nobody uses now.
    pub idle: u32,
    /// Callers that wait for one.
    pub waiting: u32,
}
