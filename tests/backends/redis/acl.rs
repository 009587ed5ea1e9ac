//! The permissions of the documented ACL user, and operations without permission.

use super::*;
use gateway_storage::history::DocumentKind;
use testkit::workload::{self, Errors, Words};

/// The command in the documentation of `RedisOptions::username`.
fn documented() -> String {
    let text = include_str!("../../../src/backend/redis/acl.md");
    let line = text.lines().find(|line| line.starts_with("ACL SETUSER")).unwrap();
    line.replace("PASSWORD", "s3cret")
}

const LOGIN: &str = "://gateway:s3cret@";

async fn leases(storage: &Storage<Redis>) -> Result {
    use gateway_storage::lease::{Claim, Holder};
    let minute = Duration::from_secs(60);
    let Claim::Yours(lease) = storage.claim_lease("a", &Holder::random(), minute).await? else { panic!() };
    storage.claim_lease("a", &Holder::random(), minute).await?;
    storage.renew_lease(&lease, minute).await?;
    assert_eq!(storage.list_leases().await?.len(), 1);
    storage.release_lease(&lease, minute).await
}

/// Batches, budgets, streams and resets by prefix.
async fn many(storage: &Storage<Redis>) -> Result {
    use futures_util::TryStreamExt;
    use gateway_storage::usage::Within;
    let (minute, all) = (Duration::from_secs(60), gateway_storage::list::ListOptions::default);
    let keys = ["many/1", "many/2", "many/3"];
    storage.set_credentials(keys.map(|id| (id, json!({})))).await?.complete()?;
    storage.set_configs(keys.map(|key| (key, json!(1)))).await?.complete()?;
    storage.set_cache_many(keys.map(|key| (key, "v")), minute).await?.complete()?;
    for key in keys {
        assert_eq!(storage.increment_within(key, "n", 2, 2).await?, Within::Counted(2));
        assert_eq!(storage.increment_within(key, "n", 1, 2).await?, Within::Refused(2));
        assert_eq!(storage.get_counter(key, "n").await?, 2);
        assert!(!storage.set_cache_if_absent(key, "w", minute).await?);
    }
    assert_eq!(storage.get_configs(keys).await?.complete()?.len(), 3);
    assert_eq!(storage.get_usages(keys).await?.complete()?.len(), 3);
    assert_eq!(storage.get_cache_many(keys).await?.complete()?.len(), 3);
    assert!(storage.stream_credentials(all()).try_collect::<Vec<_>>().await?.len() >= 3);
    assert!(storage.stream_configs(all()).try_collect::<Vec<_>>().await?.len() >= 3);
    assert!(storage.stream_usage(all()).try_collect::<Vec<_>>().await?.len() >= 3);
    assert_eq!(storage.reset_usage_prefix("many/").await?, 3);
    storage.delete_credentials(keys).await?.complete().map(drop)
}

async fn watch(storage: &Storage<Redis>) -> Result {
    let mut watched = watch::Watched::begin(storage).await;
    storage.set_credential("watched", json!({})).await?;
    watched.told(DocumentKind::Credential, Some("watched")).await;
    storage.delete_credential("watched").await
}

/// Runs every operation as the documented user. The server's ACL LOG shows refusals that the store ignores,
/// too.
async fn every_operation(url: &str, servers: &[&Server]) -> Result {
    for server in servers {
        server.raw().words(&documented());
    }
    let storage = Storage::<Redis>::open(url.replace("://", LOGIN).as_str()).await?;
    let (words, mut errors) = (Words::new(str::to_owned), Errors::default());
    workload::credentials(&storage, &words, &mut errors).await?;
    workload::configs(&storage, &words, &mut errors).await?;
    workload::conditional(&storage, &words, &mut errors).await?;
    leases(&storage).await?;
    many(&storage).await?;
    watch(&storage).await?;
    workload::usage(&storage, &words, &mut errors).await?;
    workload::cache(&storage, &words, &mut errors).await?;
    workload::plans(&storage, &words, &mut errors).await?;
    workload::exports(&storage).await?;
    workload::pool(&storage, &mut errors).await?;
    assert!(json!(storage.stats().await?).to_string().contains("appendfsync"));
    // After 5 s the servers are asked for their role.
    tokio::time::sleep(Duration::from_millis(5100)).await;
    for n in 0..100 {
        storage.increment_usage(format!("r{n}"), "n", 1).await?;
    }
    let roles = || {
        let asked = |server: &&Server| server.raw().words("INFO commandstats").contains("cmdstat_role");
        servers.iter().all(asked)
    };
    servers::until("every server was asked for its role", roles);
    workload::end(&storage, &words, &mut errors).await?;
    for error in errors.0 {
        assert!(error.kind() != ErrorKind::Denied, "{error:?}");
    }
    let waiting = format!("{}?wait_replicas=1&wait_timeout=10ms", url.replace("://", LOGIN));
    let waiting = Storage::<Redis>::open(waiting.as_str()).await?;
    let error = waiting.set_config("a", json!(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{error:?}");
    waiting.close().await?;
    for server in servers {
        assert_eq!(server.raw().words("ACL LOG"), "");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_user_may_do_everything() -> Result {
    let server = Server::start(&[]);
    every_operation(&server.url(), &[&server]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_user_may_do_everything_in_a_cluster() -> Result {
    let cluster = Cluster::start(3, 0);
    every_operation(&cluster.url(), &cluster.nodes.iter().collect::<Vec<_>>()).await
}

/// A plan that lacks a permission changes nothing, and the audit has no entry of it.
#[tokio::test]
async fn a_forbidden_plan_is_not_applied_and_not_in_the_audit() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let admin = Storage::<Redis>::open(server.url().as_str()).await?;
    let plan = |value: u32| {
        let changes = json!([{ "set": "a", "value": value }, { "delete": "b" }]);
        gateway_storage::plan::Plan::from_json(changes.to_string()).unwrap()
    };
    let (options, back) = Default::default();
    admin.apply_plan("first", &plan(1), &options).await?;
    let length = raw.words("XLEN {gcli2api:config}:audit");
    let state = |raw: &mut Raw| {
        ["HGETALL gcli2api:config", "HGETALL {gcli2api:config}:plan:first", "KEYS *"]
            .map(|command| raw.words(command))
    };
    let before = state(&mut raw);
    for (n, missing) in ["hset", "hdel", "pexpire", "xadd", "eval"].into_iter().enumerate() {
        raw.words(&documented());
        raw.words(&format!("ACL SETUSER gateway -{missing}"));
        let storage = Storage::<Redis>::open(server.url().replace("://", LOGIN).as_str()).await?;
        let error = storage.apply_plan(format!("p{n}"), &plan(2), &options).await.unwrap_err();
        let facts = (error.kind(), error.code(), error.outcome());
        assert_eq!(facts, (ErrorKind::Denied, Some("NOPERM"), Outcome::NotApplied), "{missing}");
        if missing != "pexpire" {
            let error = storage.rollback_plan("first", &back).await.unwrap_err();
            let facts = (error.kind(), error.code(), error.outcome());
            assert_eq!(facts, (ErrorKind::Denied, Some("NOPERM"), Outcome::NotApplied), "{missing}");
        }
        assert_eq!(raw.words("XLEN {gcli2api:config}:audit"), length, "{missing}");
        assert_eq!(state(&mut raw), before, "{missing}");
        storage.close().await?;
    }
    // Without the second key pattern no command of a plan runs.
    raw.words("ACL SETUSER gateway reset on >s3cret ~gcli2api:* +@all");
    let storage = Storage::<Redis>::open(server.url().replace("://", LOGIN).as_str()).await?;
    let error = storage.apply_plan("p", &plan(2), &options).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Denied, Outcome::NotApplied), "{error:?}");
    assert_eq!(state(&mut raw), before);
    admin.close().await
}

#[tokio::test]
async fn a_full_server_refuses_plans() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let plan = |value: u32| {
        let changes = json!([{ "set": "a", "value": value }, { "delete": "b" }]);
        gateway_storage::plan::Plan::from_json(changes.to_string()).unwrap()
    };
    let (options, back) = Default::default();
    storage.apply_plan("first", &plan(1), &options).await?;
    raw.words("CONFIG SET maxmemory 1");
    for error in [
        storage.apply_plan("second", &plan(2), &options).await.unwrap_err(),
        storage.rollback_plan("first", &back).await.unwrap_err(),
    ] {
        assert_eq!((error.code(), error.outcome()), (Some("OOM"), Outcome::NotApplied), "{error:?}");
    }
    raw.words("CONFIG SET maxmemory 0");
    assert_eq!(raw.words("XLEN {gcli2api:config}:audit"), "1");
    assert_eq!(storage.get_config("a").await?.value(), &json!(1));
    storage.apply_plan("second", &plan(2), &options).await?;
    assert_eq!(storage.rollback_plan("second", &back).await?, gateway_storage::plan::Rollback::RolledBack);
    assert_eq!(storage.get_config("a").await?.value(), &json!(1));
    storage.close().await
}
