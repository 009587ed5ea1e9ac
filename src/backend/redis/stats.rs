//! What the server says of itself, and what an operator should worry about.

use std::collections::HashSet;

use redis::{Value, cmd};
use serde_json::{Map, Value as Json, json};

use super::{Redis, RedisDurability, error, layout::Space, node::Node, reply, server::Call};
use crate::{
    Backend, Error, ErrorKind, Result, StorageStats,
    backend::remote::{Effect, NO_TLS},
};

/// The lines of INFO that are passed on. Those of whole numbers become numbers.
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

/// What is said of INFO where it is not allowed.
const INFO: &str = "info";
const NO_INFO: &str =
    "INFO is not allowed to this user (`+info`): whether the server keeps what it is given is not known";

/// Settings that are passed on.
const APPENDFSYNC: &str = "appendfsync";
const SLOWLOG: &str = "slowlog-log-slower-than";
const KEPT_IN_SLOWLOG: &str = "slow writes are kept in SLOWLOG with the beginning of what they write, tokens included: let few users \
                               read it, or turn it off (`slowlog-log-slower-than -1`)";

/// That many names are held, to count a record once that a server lists twice.
const HELD: usize = 200_000;

impl Redis {
    /// The counts are exact for the first [`HELD`] records. Where there is no time for all keys, a warning says so.
    pub(super) async fn describe(&self) -> Result<StorageStats> {
        let (call, counting) = (self.call()?, self.shorter_call()?);
        let mut nodes = Vec::new();
        for (addr, node) in self.server.nodes() {
            nodes.push((addr.map(|addr| addr.to_string()), self.inspect(&call, &node).await?));
        }
        let mut configs = cmd("HLEN");
        configs.arg(self.layout.config());
        let config_count = reply::number(call.send(Effect::Read, &configs).await?)?.unsigned_abs();
        let (mut seen, mut unreadable) = (HashSet::new(), 0_u64);
        let (mut credentials, mut usage, mut cached) = (0, 0, 0_u64);
        let pattern = self.layout.pattern(None);
        let all = self.names(&counting, &pattern, |name| {
            let Some(space) = self.layout.space(name) else { return Ok(()) };
            let is_known = match space {
                Space::Cache => false,
                _ if seen.len() < HELD => !seen.insert(name.to_vec()),
                _ => seen.contains(name),
            };
            match space {
                _ if is_known => {}
                _ if self.layout.key(space, name).is_err() => unreadable += 1,
                Space::Credential => credentials += 1,
                Space::Usage => usage += 1,
                Space::Cache => cached += 1,
            }
            Ok(())
        });
        let mut remarks = Vec::new();
        match all.await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Timeout && counting.is_over() => {
                remarks.push(json!(format!("the counts are too low: {error}")));
            }
            Err(error) => return Err(error),
        }
        if unreadable > 0 {
            remarks.push(json!(format!(
                "{unreadable} records have names that are no keys: lists and exports fail until they are renamed"
            )));
        }
        let mut details = together(nodes, self.server.tls());
        details.insert("cache_count".to_owned(), json!(cached));
        if let Some(Json::Array(warnings)) = details.get_mut("warnings") {
            warnings.extend(remarks);
        }
        Ok(StorageStats {
            connection_count: Some(self.server.pool_stats()?.open.into()),
            config_count,
            credential_count: credentials,
            usage_record_count: usage,
            details,
            ..StorageStats::new(self.label())
        })
    }

    /// What one server says of itself. Not every user may ask.
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
        // One at a time: version 6 takes no more.
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

    /// Refuses servers that keep what they are given less well than this.
    pub(super) async fn demand(&self, durability: RedisDurability) -> Result<()> {
        let call = self.call()?;
        if durability == RedisDurability::Any {
            return Ok(());
        }
        for (_, node) in self.server.nodes() {
            let details = self.inspect(&call, &node).await?;
            let mut reasons = dangers(&details);
            if durability == RedisDurability::Fsync && details.get(APPENDFSYNC) != Some(&json!("always")) {
                reasons.push("its append-only file is not known to be written with `appendfsync always`");
            }
            if !reasons.is_empty() {
                let reasons = reasons.join("; ");
                let message = format!("the Redis server is not as durable as it was asked to be: {reasons}");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }
}

/// The details of one server, or those of a cluster's by their addresses; and all that is to be said of them.
fn together(nodes: Vec<(Option<String>, Map<String, Json>)>, tls: &str) -> Map<String, Json> {
    let mut all = Map::new();
    let mut warned = Vec::new();
    for (addr, details) in nodes {
        let of = addr.as_ref().map_or_else(String::new, |addr| format!("{addr}: "));
        warned.extend(warnings(&details).iter().map(|warning| format!("{of}{warning}")));
        match addr {
            Some(addr) => drop(all.insert(addr, Json::Object(details))),
            None => all.extend(details),
        }
    }
    if tls == "none" {
        warned.push(NO_TLS.to_owned());
    }
    all.insert("tls".to_owned(), json!(tls));
    all.insert("warnings".to_owned(), json!(warned));
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

/// How the server, as it is set up, can lose what it acknowledged.
fn dangers(details: &Map<String, Json>) -> Vec<&'static str> {
    let evicts = text(details, "maxmemory_policy").starts_with("allkeys-");
    let mut dangers = Vec::new();
    match details.get("aof_enabled") {
        Some(enabled) if *enabled == json!(1) => {}
        Some(_) => dangers.push("no append-only file: a crash loses every write since the last snapshot"),
        None => dangers.push("whether it has an append-only file is not known: it does not say so"),
    }
    if evicts {
        dangers.push("the eviction policy lets the server drop credentials when its memory is full");
    }
    dangers
}

/// What an operator should worry about.
fn warnings(details: &Map<String, Json>) -> Vec<&'static str> {
    let broken = |name: &str| !matches!(text(details, name), "" | "ok");
    let mut warnings = if details.contains_key(INFO) { vec![NO_INFO] } else { dangers(details) };
    let keeps_slow = text(details, SLOWLOG).parse::<i64>().is_ok_and(|micros| micros >= 0);
    warnings.extend(
        [
            (keeps_slow, KEPT_IN_SLOWLOG),
            (broken("aof_last_write_status"), "the last write of the append-only file failed"),
            (broken("rdb_last_bgsave_status"), "the last snapshot failed"),
            (text(details, "role") == "slave", "a replica: it takes no writes"),
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
    fn warns_of_what_loses_data() {
        let warnings = |info: &str| warnings(&details(info));
        let safe = "# Server\r\nredis_version:7.0.15\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n";
        assert_eq!(details(safe)["redis_version"], json!("7.0.15"));
        assert!(warnings(safe).is_empty());
        assert_eq!(warnings("aof_enabled:0\r\nmaxmemory_policy:allkeys-lru\r\n").len(), 2);
        assert_eq!(warnings("aof_enabled:1\r\naof_last_write_status:err\r\n").len(), 1);
        assert_eq!(warnings("aof_enabled:1\r\nrole:slave\r\nmaster_link_status:down\r\n").len(), 2);
        assert!(warnings("aof_enabled:1\r\nrole:slave\r\nmaster_link_status:up\r\n").len() == 1);
        // As Dragonfly says it.
        let unknown = warnings("redis_version:7.4.0\r\nrole:master\r\n");
        assert!(unknown.len() == 1 && unknown[0].contains("not known"), "{unknown:?}");
        let told = |tls| together(vec![(None, details(safe))], tls)["warnings"].clone();
        assert_eq!(
            [told("verified"), told(ON_THIS_MACHINE), told("none")],
            [json!([]), json!([]), json!([NO_TLS])]
        );
    }
}
