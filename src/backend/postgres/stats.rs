//! Statistics of the store and its server, with warnings for the operator.

use serde_json::{Value as Json, json};

use super::{
    Postgres,
    error::unexpected_reply,
    options::Isolation,
    statement::{Sql, column},
};
use crate::{
    Backend, Result, StorageStats,
    backend::remote::{Effect, NO_TLS, ON_THIS_MACHINE},
};

impl Postgres {
    pub(super) async fn describe(&self) -> Result<StorageStats> {
        let reply = self.call()?.run(Effect::Read, Sql::Stats, &[]).await?;
        let row = reply.row()?;
        let count = |at| column::<i64>(row, at).map(i64::unsigned_abs);
        let text = |at| column::<Option<&str>>(row, at);
        let is = |at| column::<Option<bool>>(row, at).map(Option::unwrap_or_default);
        let (is_local, has_tls) = (is(12)?, is(10)?);
        let mut details = json!({
            "server_version": text(4)?,
            "schema": self.server.options.schema,
            "schema_version": count(13)?,
            "isolation": match self.server.options.isolation {
                Isolation::RepeatableRead => "repeatable read",
                Isolation::Serializable => "serializable",
            },
            "tls": match text(11)? {
                Some(version) if has_tls => version,
                _ if is_local => ON_THIS_MACHINE,
                _ => "none",
            },
            "synchronous_commit": text(5)?,
            "fsync": text(6)?,
            "full_page_writes": text(7)?,
            "in_recovery": is(8)?,
            "read_only": is(9)?,
            "max_connections": count(14)?,
            "connections_of_all": count(15)?,
            "pgbouncer": self.server.options.pgbouncer,
        });
        if let Some(settings) = text(16)?.filter(|settings| !settings.is_empty()) {
            details["parameters_logged_by"] = json!(settings);
        }
        details["warnings"] = json!(warnings(&details));
        let Json::Object(details) = details else { return Err(unexpected_reply()) };
        Ok(StorageStats {
            connection_count: Some(self.server.pool()?.open().into()),
            credential_count: count(0)?,
            config_count: count(1)?,
            usage_record_count: count(2)?,
            total_size: Some(count(3)?),
            details,
            ..StorageStats::new(self.label())
        })
    }
}

/// Warns of settings with which the server loses acknowledged writes, refuses calls or logs stored values.
fn warnings(details: &Json) -> Vec<String> {
    let number = |name: &str| details[name].as_u64().unwrap_or_default();
    [
        (details["fsync"] == "off", "fsync is off: a power failure can destroy the database"),
        (details["full_page_writes"] == "off", "full_page_writes is off: a power failure can damage pages"),
        (
            details["synchronous_commit"] == "off",
            "synchronous_commit is off: a crash loses the last commits that were acknowledged",
        ),
        (details["in_recovery"] == true, "the server is a standby and takes no writes"),
        (
            details["read_only"] == true && details["in_recovery"] == false,
            "transactions are read-only by default: the server takes no writes",
        ),
        (details["tls"] == "none", NO_TLS),
        (
            number("connections_of_all") * 10 > number("max_connections") * 9,
            "over 90% of the server's connections are in use",
        ),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .map(|(_, warning)| warning.to_owned())
    .chain(details["parameters_logged_by"].as_str().map(|settings| {
        format!(
            "the server writes stored values, credentials too, into its log ({settings}): turn that off, or set \
             log_parameter_max_length and log_parameter_max_length_on_error to 0 for this role"
        )
    }))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unsafe_setting_has_a_warning() {
        let warnings = |found: Json| warnings(&found).len();
        let safe = json!({
            "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "in_recovery": false,
            "read_only": false, "tls": "TLSv1.3", "max_connections": 100, "connections_of_all": 12,
        });
        assert_eq!(warnings(safe.clone()), 0);
        for (name, value) in [
            ("fsync", json!("off")),
            ("full_page_writes", json!("off")),
            ("synchronous_commit", json!("off")),
            ("in_recovery", json!(true)),
            ("read_only", json!(true)),
            ("tls", json!("none")),
            ("connections_of_all", json!(95)),
            ("parameters_logged_by", json!("log_statement")),
        ] {
            let mut changed = safe.clone();
            changed[name] = value;
            assert_eq!(warnings(changed), 1, "{name}");
        }
    }
}
