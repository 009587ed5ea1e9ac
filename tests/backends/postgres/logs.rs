//! Servers whose settings make them log stored values.

use std::{fs, path::Path, time::Duration, time::Instant};

use gateway_storage::{Postgres, Storage};
use serde_json::json;

use super::{Result, config, key, open, raw, servers::postgres::Server};

/// Writes this mark into the log, and returns the log once it contains the mark.
async fn log_up_to(server: &Server, folder: &Path, mark: &str) -> String {
    raw(&server.url()).await.batch_execute(&format!("DO $$ BEGIN RAISE LOG '{mark}'; END $$")).await.unwrap();
    let started = Instant::now();
    loop {
        let log = fs::read_to_string(folder.join("server.log")).unwrap_or_default();
        if log.contains(mark) {
            return log;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the log is not written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Stores a credential, and fails to store a config value that a transaction has locked.
async fn store(storage: &Storage<Postgres>, token: &str) -> Result {
    storage.set_credential("a", json!({ "token": token })).await?;
    let mut holder = storage.begin().await?;
    holder.set_config(&key("held"), &config(json!(1))).await?;
    let error = storage.set_config("held", json!(format!("error-{token}"))).await.unwrap_err();
    assert_eq!(error.code(), Some("55P03"));
    holder.rollback().await
}

#[tokio::test]
async fn stats_warn_of_settings_that_log_stored_values() -> Result {
    let server = Server::start(&["logging_collector=on", "log_filename=server.log", "log_directory=log"]);
    let folder = server.folder.path().join("data/log");
    let administrator = raw(&server.url()).await;
    // The settings of a role, and the setting among them that must be reported.
    for (number, (settings, reported)) in [
        ("log_duration = on", None),
        ("log_statement = 'ddl'", None),
        ("log_statement = 'mod'", Some("log_statement")),
        ("log_statement = 'all'", Some("log_statement")),
        ("log_statement = 'all'; log_parameter_max_length = 0", None),
        ("log_statement = 'all'; log_min_messages = 'fatal'", None),
        ("log_min_duration_statement = 0", Some("log_min_duration_statement")),
        ("log_min_duration_sample = 0", Some("log_min_duration_sample")),
        ("log_min_duration_sample = 0; log_statement_sample_rate = 0", None),
        ("log_transaction_sample_rate = 1", Some("log_transaction_sample_rate")),
        ("log_parameter_max_length_on_error = -1", Some("log_parameter_max_length_on_error")),
        ("session_preload_libraries = 'auto_explain'; auto_explain.log_min_duration = 0", None),
        (
            "session_preload_libraries = 'auto_explain'; auto_explain.log_min_duration = 0; auto_explain.log_verbose = on",
            Some("auto_explain.log_min_duration"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let role = format!("role_{number}");
        administrator.batch_execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER")).await.unwrap();
        for setting in settings.split("; ") {
            administrator.batch_execute(&format!("ALTER ROLE {role} SET {setting}")).await.unwrap();
        }
        for pooled in [false, true] {
            let token = format!("c4nary-{number}-{pooled}.");
            let url = server.url().replace("tester@", &format!("{role}@"));
            let storage = open(&format!("{url}&lock_timeout=50ms&pgbouncer={pooled}")).await;
            let stats = storage.stats().await?;
            if pooled {
                // Behind a pooler the session has no `lock_timeout`.
                storage.set_credential("a", json!({ "token": token })).await?;
            } else {
                store(&storage, &token).await?;
            }
            let log = log_up_to(&server, &folder, &format!("mark {number} {pooled}.")).await;
            let is_logged = log.contains(&token);
            let is_error = reported == Some("log_parameter_max_length_on_error");
            assert_eq!(is_logged, reported.is_some() && !(is_error && pooled), "{settings}, {pooled}");
            assert_eq!(stats.details.get("parameters_logged_by").and_then(|settings| settings.as_str()), reported, "{settings}");
            let warning = reported.map(|setting| format!("into its log ({setting})")).unwrap_or_default();
            let warnings = stats.details["warnings"].to_string();
            assert_eq!(warnings.contains("into its log ("), reported.is_some(), "{warnings}");
            assert!(warnings.contains(&warning), "{warnings}");
            storage.close().await?;
        }
    }
    Ok(())
}
