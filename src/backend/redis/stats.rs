//! Statistics of the store and its servers, with warnings for an operator.

use std::collections::HashSet;

use redis::{Value, cmd};
use serde_json::{Map, Value as Json, json};

use super::{Redis, RedisDurability, error, layout::Space, node::Node, reply, server::Call};
use crate::{
    Backend, Error, ErrorKind, Result, StorageStats,
    backend::remote::{Effect, NO_TLS},
};

/// The lines of INFO that become details. Integers become JSON numbers.
const DETAILS: [&str; 19] = [
    "redis_version",
    "valkey_version",
    "redis_mode",
    "cluster_enabled",
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

/// The detail that says that INFO is not allowed, and the warning.
const INFO: &str = "info";
const NO_INFO: &str = "INFO is not allowed for this user (`+info`): whether the server can lose acknowledged writes is not known";

/// The settings that become details.
const APPENDFSYNC: &str = "appendfsync";
const SLOWLOG: &str = "slowlog-log-slower-than";
const KEPT_IN_SLOWLOG: &str = "SLOWLOG keeps the beginning of slow writes, tokens included: restrict who can read it, or turn it \
                               off (`slowlog-log-slower-than -1`)";

/// How many names are held in memory, to count a record once that SCAN returns twice.
const MAX_NAMES: usize = 200_000;

impl Redis {
    /// The counts are exact for the first [`MAX_NAMES`] records. A warning says if not all keys were scanned.
    pub(super) async fn collect_stats(&self) -> Result<StorageStats> {
        let (call, counting) = (self.call()?, self.shorter_call()?);
        let mut nodes = Vec::new();
        for node in self.server.nodes() {
            let addr = node.addr().filter(|_| self.server.is_cluster()).map(ToString::to_string);
            nodes.push((addr, self.inspect(&call, &node).await?));
        }
        let configs = call.send(Effect::Read, cmd("HLEN").arg(self.layout.config())).await?;
        let config_count = reply::number(configs)?.unsigned_abs();
        let (mut seen, mut unreadable) = (HashSet::new(), 0_u64);
        let (mut credentials, mut usage, mut cached) = (0, 0, 0_u64);
        let pattern = self.layout.pattern(None, "");
        let all = self.scan_names(&counting, &pattern, |name| {
            let Some((space, key)) = self.layout.record(name) else { return Ok(()) };
            let is_counted = match space {
                Space::Cache | Space::Lease => false,
                _ if seen.len() < MAX_NAMES => !seen.insert(name.to_vec()),
                _ => seen.contains(name),
            };
            match space {
                _ if is_counted => {}
                _ if key.is_err() => unreadable += 1,
                Space::Credential => credentials += 1,
                Space::Usage => usage += 1,
                Space::Cache => cached += 1,
                Space::Lease => {}
            }
            Ok(())
        });
        let mut warnings = Vec::new();
        match all.await {
            Err(error) if error.kind() == ErrorKind::Timeout && counting.is_over() => {
                warnings.push(format!("the counts are too low: {error}"));
            }
            ended => ended?,
        }
        if unreadable > 0 {
            warnings.push(format!(
                "{unreadable} records have names that are not valid keys: lists and exports fail until they are renamed"
            ));
        }
        let mut details = merged(nodes, self.server.tls(), warnings);
        details.insert("cache_count".to_owned(), json!(cached));
        Ok(StorageStats {
            connection_count: Some(self.server.pool_stats()?.open.into()),
            config_count,
            credential_count: credentials,
            usage_record_count: usage,
            details,
            ..StorageStats::new(self.label())
        })
    }

    /// The details of one server, as far as the user may read them.
    async fn inspect(&self, call: &Call<'_>, node: &Node) -> Result<Map<String, Json>> {
        let mut details = match call.send_to(node, Effect::Read, &cmd("INFO")).await {
            Ok(Value::BulkString(text)) => details(&String::from_utf8_lossy(&text)),
            Ok(Value::VerbatimString { text, .. }) => details(&text),
            Ok(_) => return Err(error::unexpected_reply(Effect::Read)),
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => {
                Map::from_iter([(INFO.to_owned(), json!("not allowed"))])
            }
            Err(error) => return Err(error),
        };
        // One setting per command: version 6 accepts no more.
        for name in [APPENDFSYNC, SLOWLOG] {
            if let Ok(Value::Map(setting)) =
                call.send_to(node, Effect::Read, cmd("CONFIG").arg("GET").arg(name)).await
                && let Some((_, Value::BulkString(value))) = setting.first()
            {
                details.insert(name.to_owned(), json!(String::from_utf8_lossy(value)));
            }
        }
        Ok(details)
    }

    /// Refuses servers that are less durable than required.
    pub(super) async fn check_durability(&self, durability: RedisDurability) -> Result<()> {
        let call = self.call()?;
        if durability == RedisDurability::Any {
            return Ok(());
        }
        for node in self.server.nodes() {
            let details = self.inspect(&call, &node).await?;
            let mut reasons = data_loss_risks(&details);
            if durability == RedisDurability::Fsync && details.get(APPENDFSYNC) != Some(&json!("always")) {
                reasons.push("its append-only file is not known to be written with `appendfsync always`");
            }
            if !reasons.is_empty() {
                let reasons = reasons.join("; ");
                let message =
                    format!("the Redis server is less durable than `durability` requires: {reasons}");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }
}

/// The details of one server, or those of a cluster's servers by address; and the warnings of all of them.
fn merged(
    nodes: Vec<(Option<String>, Map<String, Json>)>,
    tls: &str,
    others: Vec<String>,
) -> Map<String, Json> {
    let mut all = Map::new();
    let mut all_warnings = Vec::new();
    for (addr, details) in nodes {
        let prefix = addr.as_ref().map_or_else(String::new, |addr| format!("{addr}: "));
        all_warnings.extend(warnings(&details).iter().map(|warning| format!("{prefix}{warning}")));
        match addr {
            Some(addr) => drop(all.insert(addr, Json::Object(details))),
            None => all.extend(details),
        }
    }
    if tls == "none" {
        all_warnings.push(NO_TLS.to_owned());
    }
    all_warnings.extend(others);
    all.insert("tls".to_owned(), json!(tls));
    all.insert("warnings".to_owned(), json!(all_warnings));
    all
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

/// The ways in which the server's settings let it lose acknowledged writes.
fn data_loss_risks(details: &Map<String, Json>) -> Vec<&'static str> {
    let evicts = text(details, "maxmemory_policy").starts_with("allkeys-");
    let mut risks = Vec::new();
    match details.get("aof_enabled") {
        Some(enabled) if *enabled == json!(1) => {}
        Some(_) => risks.push("no append-only file: a crash loses every write since the last snapshot"),
        None => risks.push("whether the server has an append-only file is not known: it does not report it"),
    }
    if evicts {
        risks.push("the eviction policy lets the server drop credentials when its memory is full");
    }
    risks
}

fn warnings(details: &Map<String, Json>) -> Vec<&'static str> {
    let failed = |name: &str| !matches!(text(details, name), "" | "ok");
    let mut warnings = if details.contains_key(INFO) { vec![NO_INFO] } else { data_loss_risks(details) };
    let has_slowlog = text(details, SLOWLOG).parse::<i64>().is_ok_and(|micros| micros >= 0);
    warnings.extend(
        [
            (has_slowlog, KEPT_IN_SLOWLOG),
            (failed("aof_last_write_status"), "the last write of the append-only file failed"),
            (failed("rdb_last_bgsave_status"), "the last snapshot failed"),
            (text(details, "role") == "slave", "the server is a replica: it accepts no writes"),
            (text(details, "master_link_status") == "down", "the replica lost its master"),
        ]
        .into_iter()
        .filter_map(|(holds, warning)| holds.then_some(warning)),
    );
    warnings
}

fn text<'d>(details: &'d Map<String, Json>, name: &str) -> &'d str {
    details.get(name).and_then(Json::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::remote::ON_THIS_MACHINE;

    #[test]
    fn warns_of_settings_that_lose_data() {
        let warnings = |info: &str| warnings(&details(info));
        let safe = "# Server\r\nredis_version:7.0.15\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n";
        assert_eq!(details(safe)["redis_version"], json!("7.0.15"));
        assert!(warnings(safe).is_empty());
        assert_eq!(warnings("aof_enabled:0\r\nmaxmemory_policy:allkeys-lru\r\n").len(), 2);
        assert_eq!(warnings("aof_enabled:1\r\naof_last_write_status:err\r\n").len(), 1);
        assert_eq!(warnings("aof_enabled:1\r\nrole:slave\r\nmaster_link_status:down\r\n").len(), 2);
        assert!(warnings("aof_enabled:1\r\nrole:slave\r\nmaster_link_status:up\r\n").len() == 1);
        // As Dragonfly reports it.
        let unknown = warnings("redis_version:7.4.0\r\nrole:master\r\n");
        assert!(unknown.len() == 1 && unknown[0].contains("not known"), "{unknown:?}");
        let with_tls = |tls| merged(vec![(None, details(safe))], tls, vec![])["warnings"].clone();
        assert_eq!(
            [with_tls("verified"), with_tls(ON_THIS_MACHINE), with_tls("none")],
            [json!([]), json!([]), json!([NO_TLS])]
        );
    }
}
