//! What a storage says of itself.

use serde::Serialize;
use serde_json::{Map, Value};

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
            details: Map::new(),
        }
    }
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
