//! Statistics of the store and its server, with warnings for the operator.

use serde_json::{Map, Value as Json, json};

use super::{
    Postgres,
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
        let mut details = Map::new();
        let mut detail = |name: &str, value: Json| details.insert(name.to_owned(), value);
        detail("server_version", json!(text(4)?));
        detail("schema", json!(self.server.options.schema));
        detail("schema_version", json!(count(13)?));
        detail(
            "isolation",
            json!(match self.server.options.isolation {
                Isolation::RepeatableRead => "repeatable read",
                Isolation::Serializable => "serializable",
            }),
        );
        detail(
            "tls",
            json!(match text(11)? {
                Some(version) if has_tls => version,
                _ if is_local => ON_THIS_MACHINE,
                _ => "none",
            }),
        );
        detail("synchronous_commit", json!(text(5)?));
        detail("fsync", json!(text(6)?));
        detail("full_page_writes", json!(text(7)?));
        detail("in_recovery", json!(is(8)?));
        detail("read_only", json!(is(9)?));
        detail("max_connections", json!(count(14)?));
        detail("connections_of_all", json!(count(15)?));
        detail("pgbouncer", json!(self.server.options.pgbouncer));
        if let Some(settings) = text(16)?.filter(|settings| !settings.is_empty()) {
            detail("parameters_logged_by", json!(settings));
        }
        let warnings = warnings(&details);
        details.insert("warnings".to_owned(), json!(warnings));
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
fn warnings(details: &Map<String, Json>) -> Vec<String> {
    let is = |name: &str, value: Json| details.get(name) == Some(&value);
    let number = |name: &str| details.get(name).and_then(Json::as_u64).unwrap_or_default();
    [
        (is("fsync", json!("off")), "fsync is off: a power failure can destroy the database"),
        (is("full_page_writes", json!("off")), "full_page_writes is off: a power failure can damage pages"),
        (
            is("synchronous_commit", json!("off")),
            "synchronous_commit is off: a crash loses the last commits that were acknowledged",
        ),
        (is("in_recovery", json!(true)), "the server is a standby and takes no writes"),
        (
            is("read_only", json!(true)) && is("in_recovery", json!(false)),
            "transactions are read-only by default: the server takes no writes",
        ),
        (is("tls", json!("none")), NO_TLS),
        (
            number("connections_of_all") * 10 > number("max_connections") * 9,
            "over 90% of the server's connections are in use",
        ),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .map(|(_, warning)| warning.to_owned())
    .chain(details.get("parameters_logged_by").and_then(Json::as_str).map(|settings| {
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
        let warnings = |found: Json| warnings(found.as_object().unwrap()).len();
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
