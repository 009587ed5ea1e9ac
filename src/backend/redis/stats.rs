//! What the server says of itself, and what an operator should worry about.

use redis::{Value, cmd};
use serde_json::{Map, Value as Json, json};

use super::{Redis, failure, layout::Space, reply, server::Effect};
use crate::{Backend, Result, StorageStats};

/// The lines of INFO that are passed on. Those of whole numbers become numbers.
const DETAILS: [&str; 18] = [
    "redis_version",
    "valkey_version",
    "redis_mode",
    "role",
    "master_link_status",
    "connected_slaves",
    "connected_clients",
    "maxclients",
    "used_memory",
    "maxmemory",
    "maxmemory_policy",
    "evicted_keys",
    "loading",
    "aof_enabled",
    "aof_last_write_status",
    "rdb_last_bgsave_status",
    "rdb_last_save_time",
    "rdb_changes_since_last_save",
];

impl Redis {
    pub(super) async fn describe(&self) -> Result<StorageStats> {
        let call = self.call()?;
        let info = match call.send(Effect::Read, &cmd("INFO")).await? {
            Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
            Value::VerbatimString { text, .. } => text,
            _ => return Err(failure::unexpected_reply(Effect::Read)),
        };
        let mut configs = cmd("HLEN");
        configs.arg(self.layout.config());
        let mut details = details(&info);
        details.insert("warnings".to_owned(), json!(warnings(&details)));
        Ok(StorageStats {
            connection_count: Some(self.server.pool()?.state().connections.into()),
            config_count: reply::number(call.send(Effect::Read, &configs).await?)?.unsigned_abs(),
            credential_count: self.scan(&call, Space::Credential).await?.len() as u64,
            usage_record_count: self.scan(&call, Space::Usage).await?.len() as u64,
            details,
            ..StorageStats::new(self.label())
        })
    }
}

fn details(info: &str) -> Map<String, Json> {
    info.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .filter(|(name, _)| DETAILS.contains(name))
        .map(|(name, value)| {
            let value = value.parse::<i64>().map_or_else(|_| json!(value), |number| json!(number));
            (name.to_owned(), value)
        })
        .collect()
}

/// How the server, as it is set up, can lose what it acknowledged.
fn warnings(details: &Map<String, Json>) -> Vec<&'static str> {
    let is = |name: &str, value: Json| details.get(name) == Some(&value);
    let text = |name: &str| details.get(name).and_then(Json::as_str).unwrap_or_default();
    let broken = |name: &str| !matches!(text(name), "" | "ok");
    [
        (
            is("aof_enabled", json!(0)),
            "no append-only file: a crash loses every write since the last snapshot",
        ),
        (
            text("maxmemory_policy").starts_with("allkeys-"),
            "the eviction policy lets the server drop credentials when its memory is full",
        ),
        (broken("aof_last_write_status"), "the last write of the append-only file failed"),
        (broken("rdb_last_bgsave_status"), "the last snapshot failed"),
        (text("role") == "slave", "a replica: it takes no writes"),
        (broken("master_link_status") && text("master_link_status") == "down", "the replica lost its master"),
    ]
    .into_iter()
    .filter_map(|(holds, warning)| holds.then_some(warning))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_what_loses_data() {
        let warnings = |info: &str| warnings(&details(info));
        let safe = "# Server\r\nredis_version:7.0.15\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n";
        assert_eq!(details(safe)["redis_version"], json!("7.0.15"));
        assert!(warnings(safe).is_empty());
        assert_eq!(warnings("aof_enabled:0\r\nmaxmemory_policy:allkeys-lru\r\n").len(), 2);
        assert_eq!(warnings("aof_enabled:1\r\naof_last_write_status:err\r\n").len(), 1);
        assert_eq!(warnings("role:slave\r\nmaster_link_status:down\r\n").len(), 2);
        assert!(warnings("role:slave\r\nmaster_link_status:up\r\n").len() == 1);
    }
}
