//! The schema: creation, migration and refusal.

use std::{process::Command, time::Duration};

use gateway_storage::{
    ErrorKind, Postgres, PostgresOptions, Storage,
    lease::{Claim, Holder},
    plan::{Applied, ApplyOptions, Plan},
};
use serde_json::json;

use super::{Result, config, key, open, raw, schema, servers};

fn options(url: &str) -> PostgresOptions {
    PostgresOptions::try_from(url).unwrap()
}

#[tokio::test]
async fn a_schema_is_created_once_and_only_if_allowed() -> Result {
    let url = servers::postgres();
    let status = Postgres::schema_status(options(&url)).await?;
    assert_eq!(
        (status.version, status.schema.as_str(), status.is_current()),
        (0, schema(&url).as_str(), false)
    );
    let error = Storage::<Postgres>::open(format!("{url}&create=false").as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let status = Postgres::migrate(options(&url)).await?;
    assert!(status.is_current() && status.version == status.latest && status.latest > 0);
    assert_eq!(Postgres::migrate(options(&url)).await?, status);
    assert_eq!(Postgres::schema_status(options(&url)).await?, status);
    open(&format!("{url}&create=false")).await.close().await
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused() -> Result {
    let url = servers::postgres();
    open(&url).await.close().await?;
    let administrator = raw(&url).await;
    let change = async |sql: &str| {
        administrator.batch_execute(&sql.replace("{s}", &schema(&url))).await.unwrap();
        let opened = Storage::<Postgres>::open(url.as_str()).await.map(drop).map_err(|error| error.kind());
        let status = Postgres::schema_status(options(&url)).await.map(drop).map_err(|error| error.kind());
        assert_eq!(opened, status);
        opened
    };
    let newer = change("INSERT INTO {s}.schema_migrations VALUES (1000, 'later')").await;
    assert_eq!(newer, Err(ErrorKind::Unsupported));
    assert_eq!(change("DELETE FROM {s}.schema_migrations WHERE version = 1000").await, Ok(()));
    assert_eq!(change("UPDATE {s}.schema_migrations SET checksum = 'other'").await, Err(ErrorKind::Corrupt));
    Ok(())
}

/// A database from before plans were added.
#[tokio::test]
async fn an_older_schema_is_migrated_only_if_allowed() -> Result {
    let url = servers::postgres();
    let storage = open(&url).await;
    storage.set_config("k", json!(1)).await?;
    storage.close().await?;
    let older = "DROP TABLE {s}.plans, {s}.plan_audit, {s}.leases; DELETE FROM {s}.schema_migrations WHERE version > 1";
    raw(&url).await.batch_execute(&older.replace("{s}", &schema(&url))).await.unwrap();
    assert_eq!(Postgres::schema_status(options(&url)).await?.version, 1);
    let error = Storage::<Postgres>::open(format!("{url}&create=false").as_str()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let storage = open(&url).await;
    let plan = Plan::from_json(r#"[{"set":"k","value":2,"expect":1}]"#)?;
    assert_eq!(storage.apply_plan("k", &plan, &ApplyOptions::default()).await?, Applied::Applied);
    storage.close().await
}

/// A replica of the version before leases has the store open, and goes on beside newer ones.
#[tokio::test]
async fn leases_are_added_beside_an_older_replica() -> Result {
    let url = servers::postgres();
    // It reads the version of the schema when it opens the store, and never again.
    let old = open(&url).await;
    let before = "DROP TABLE {s}.leases; DELETE FROM {s}.schema_migrations WHERE version = 3";
    raw(&url).await.batch_execute(&before.replace("{s}", &schema(&url))).await.unwrap();
    let calls = async |n: u64| {
        old.set_config("k", json!(n)).await?;
        old.increment_usage("u", "n", 1).await?;
        let plan = Plan::from_json(format!(r#"[{{"set":"k","value":{n},"expect":{n}}}]"#))?;
        old.apply_plan(n.to_string(), &plan, &ApplyOptions::default()).await
    };
    calls(1).await?;
    // An open transaction does not keep the migration waiting.
    let mut transaction = old.begin().await?;
    transaction.set_config(&key("t"), &config(json!(1))).await?;
    let new = open(&url).await;
    transaction.commit().await?;
    calls(2).await?;
    let claimed = new.claim_lease("a", &Holder::random(), Duration::from_secs(60)).await?;
    assert!(matches!(claimed, Claim::Yours(_)));
    calls(3).await?;
    assert_eq!(new.get_usage("u").await?.get("n"), Some(3));
    new.close().await?;
    old.close().await
}

/// A rolling update migrates the schema while connections have statements prepared for the old column types.
#[tokio::test]
async fn no_call_fails_during_a_migration() -> Result {
    let url = servers::postgres();
    let storage = open(&format!("{url}&pool_size=1")).await;
    storage.set_config("a", json!(1)).await?;
    assert_eq!(storage.list_configs().await?.len(), 1);
    let change = format!("ALTER TABLE {}.configs ALTER COLUMN key TYPE varchar(2000)", schema(&url));
    raw(&url).await.batch_execute(&change).await.unwrap();
    assert_eq!(storage.list_configs().await?.len(), 1);
    storage.set_config("b", json!(2)).await?;
    assert_eq!(storage.list_configs().await?.len(), 2);
    storage.close().await
}

#[tokio::test]
async fn the_name_of_a_schema_may_hold_quotes_and_sql() -> Result {
    let url = servers::postgres();
    let name = format!("{}\"; DROP TABLE 'x' %s --", schema(&url));
    let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let url = url.replace(&format!("schema={}", schema(&url)), &format!("schema={encoded}"));
    for url in [url.clone(), format!("{url}&pgbouncer=true")] {
        let storage = open(&url).await;
        storage.set_config("k", json!(1)).await?;
        assert_eq!(storage.stats().await?.details["schema"], json!(name));
        storage.close().await?;
    }
    Ok(())
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn ten_processes_open_an_empty_database_at_once() {
    let url = servers::postgres();
    let started: Vec<_> = (0..10)
        .map(|n| {
            Command::new(env!("CARGO_BIN_EXE_storage"))
                .args(["--url", &url, "config", "set", &format!("k{n}"), "1"])
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for process in started {
        let ended = servers::output_of(process);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let storage = open(&url).await;
    assert_eq!(storage.list_configs().await.unwrap().len(), 10);
    let applied = format!("SELECT count(*) FROM {}.schema_migrations", schema(&url));
    assert_eq!(
        raw(&url).await.query_one(&applied, &[]).await.unwrap().get::<_, i64>(0),
        3,
        "each migration once"
    );
}

#[cfg(feature = "cli")]
#[test]
fn the_command_shows_and_migrates_the_schema() {
    let url = servers::postgres();
    let storage = |line: &[&str]| {
        let ended =
            Command::new(env!("CARGO_BIN_EXE_storage")).args(["--url", &url]).args(line).output().unwrap();
        let text = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        (ended.status.code().unwrap(), text)
    };
    assert_eq!(storage(&["config", "get", "k"]).0, 5, "reading creates no schema");
    let (code, text) = storage(&["schema", "status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &status["version"], &status["current"]), (0, &json!(0), &json!(false)), "{text}");
    assert_eq!(storage(&["schema", "up"]).0, 0);
    let (code, text) = storage(&["schema", "status"]);
    assert!(code == 0 && text.contains("current"), "{text}");
    assert_eq!(storage(&["config", "get", "k"]).0, 1, "the store exists and is empty");
    let (code, text) = storage(&["cache", "get", "k"]);
    assert!(code == 6 && text.contains("`Postgres` cannot cache"), "{text}");
    let (code, text) = storage(&["doctor", "--output", "json"]);
    let doctor: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &doctor["facts"]["isolation"]), (0, &json!("serializable")), "{text}");
    assert!(doctor["warnings"].to_string().contains("fsync is off"), "{text}");
    let ended =
        Command::new(env!("CARGO_BIN_EXE_storage")).args(["--url", "memory:", "schema", "up"]).output();
    let ended = ended.unwrap();
    assert_eq!(ended.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("`Postgres`"));
}
