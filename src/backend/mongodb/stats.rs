//! Statistics from the servers, and warnings for operators.

use mongodb::bson::{Bson, Document, doc};
use serde_json::{Value as Json, json};

use super::{MongoDb, ReadLevel, WriteLevel, error::unexpected_reply, schema::VERSION};
use crate::{
    Backend, Result, StorageStats,
    backend::remote::{Effect, NO_TLS, ON_THIS_MACHINE},
};

impl MongoDb {
    pub(super) async fn describe(&self) -> Result<StorageStats> {
        let call = self.call()?;
        let permit = call.permit().await?;
        let hello = call.ask(permit.database.run_command(doc! { "hello": 1 })).await?;
        let build = call.ask(permit.database.run_command(doc! { "buildInfo": 1 })).await?;
        let size = call.ask(permit.database.run_command(doc! { "dbStats": 1 })).await?;
        // It fails for users without the right to read it.
        let profiling = call.ask(permit.database.run_command(doc! { "profile": -1 })).await.ok();
        let mut counts = [0; 3];
        let collections = [&permit.credentials, &permit.configs, &permit.usage];
        for (count, collection) in counts.iter_mut().zip(collections) {
            *count = call.ask(collection.count_documents(doc! {})).await?;
        }
        let options = &self.server.options;
        let members = hello.get_array("hosts").into_iter().flatten().filter_map(Bson::as_str);
        let tls = match (options.tls, options.tls_allow_invalid_certificates) {
            (false, _) if options.is_local(members) => ON_THIS_MACHINE,
            (false, _) => "none",
            (true, false) => "verified",
            (true, true) => "not verified",
        };
        let mut details = json!({
            "server_version": build.get_str("version").ok(),
            "schema_version": VERSION,
            "database": options.database,
            "topology": permit.writable.as_str(),
            "replica_set": hello.get_str("setName").ok(),
            "members": hello.get_array("hosts").ok().map(Vec::len),
            "transactions": permit.writable.has_transactions(),
            "write_concern": match options.write_concern {
                WriteLevel::Majority => json!("majority"),
                WriteLevel::Members(count) => json!(count),
            },
            "journal": options.journal,
            "read_concern": match options.read_concern {
                ReadLevel::Majority => "majority",
                ReadLevel::Local => "local",
                ReadLevel::Linearizable => "linearizable",
            },
            "tls": tls,
            "profiling_level": profiling.as_ref().and_then(|found| whole(found, "was")),
            "slow_ms": profiling.as_ref().and_then(|found| whole(found, "slowms")),
        });
        details["warnings"] = json!(warnings(&details));
        let Json::Object(details) = details else { return Err(unexpected_reply(Effect::Read)) };
        let [credential_count, config_count, usage_record_count] = counts;
        Ok(StorageStats {
            connection_count: Some(permit.topology.connections().0.into()),
            credential_count,
            config_count,
            usage_record_count,
            total_size: whole(&size, "totalSize"),
            details,
            ..StorageStats::new(self.label())
        })
    }
}

/// A count of any numeric type.
fn whole(document: &Document, name: &str) -> Option<u64> {
    match document.get(name)? {
        Bson::Int32(count) => u64::try_from(*count).ok(),
        Bson::Int64(count) => u64::try_from(*count).ok(),
        // Sizes are sent as doubles.
        Bson::Double(count) if *count >= 0.0 => Some(*count as u64),
        _ => None,
    }
}

/// With `slowms` from here on, few writes are slow enough for the server's log: it is the default deadline of
/// a call. The server's default is 100 ms.
const RARELY_SLOW_MS: u64 = 10_000;

/// How the servers' settings and the options can lose acknowledged writes or disclose credentials.
fn warnings(details: &Json) -> Vec<&'static str> {
    let count = |name: &str| details[name].as_u64();
    [
        (
            details["topology"] == "standalone",
            "a standalone server: no transactions, no snapshot for exports, and no failover",
        ),
        (
            details["topology"] == "replica set" && count("members").is_some_and(|count| count < 3),
            "fewer than three members: if one fails, no primary can be elected",
        ),
        (
            details["write_concern"] != "majority",
            "the write concern is not `majority`: a failover can lose writes that were acknowledged",
        ),
        (
            details["journal"] == false,
            "`journal` is off: a power failure can lose writes that were acknowledged",
        ),
        (
            details["read_concern"] == "local",
            "the read concern is `local`: a failover can roll back data that was read",
        ),
        (details["tls"] == "none", NO_TLS),
        (
            count("profiling_level").is_some_and(|level| level > 0),
            "the database is profiled: `system.profile` records slow or all writes, including credentials",
        ),
        (
            count("slow_ms").is_some_and(|limit| limit < RARELY_SLOW_MS),
            "the server logs writes slower than `slowms`, including credentials: set it to 10 s or more, unless \
             `redactClientLogData` is on",
        ),
        (
            details["tls"] == "not verified",
            "any certificate is accepted: an attacker on the network can read every credential",
        ),
    ]
    .into_iter()
    .filter_map(|(applies, warning)| applies.then_some(warning))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unsafe_setting_is_one_warning() {
        let warnings = |details: Json| warnings(&details).len();
        let safe = json!({
            "topology": "replica set", "members": 3, "write_concern": "majority", "journal": true,
            "read_concern": "majority", "tls": "verified", "profiling_level": 0, "slow_ms": 10_000,
        });
        assert_eq!(warnings(safe.clone()), 0);
        for (name, value) in [
            ("topology", json!("standalone")),
            ("members", json!(2)),
            ("write_concern", json!(1)),
            ("journal", json!(false)),
            ("read_concern", json!("local")),
            ("tls", json!("none")),
            ("tls", json!("not verified")),
            ("profiling_level", json!(2)),
            ("slow_ms", json!(100)),
        ] {
            let mut unsafe_one = safe.clone();
            unsafe_one[name] = value;
            assert_eq!(warnings(unsafe_one), 1, "{name}");
        }
    }
}
