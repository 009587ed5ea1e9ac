//! Conditional writes beside programs that know nothing of revisions.

use std::time::Duration;

use gateway_storage::{
    Credential, ErrorKind, Outcome, Postgres, Storage,
    revision::Condition::{Absent, Unchanged},
};
use serde_json::json;
use tokio_postgres::Client;

use super::{Result, open, raw, rounds, schema, servers};

fn conflicts<T>(result: Result<T>) {
    let error = result.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied), "{error:?}");
    assert!(!error.is_retryable() && error.key().is_some());
}

fn of(n: u64) -> Credential {
    json!({ "n": n }).try_into().unwrap()
}

async fn execute(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn a_change_by_another_program_is_a_conflict() -> Result {
    let other = raw(&servers::postgres()).await;
    for url in [servers::postgres(), servers::pgbouncer()] {
        let (storage, schema) = (open(&url).await, schema(&url));
        // The same value with more white space is another revision.
        for text in ["{\"n\":2}", "{\"n\": 1}"] {
            storage.set_credential("a", of(1)).await?;
            let (_, revision) = storage.get_credential_with_revision("a").await?;
            execute(&other, &format!("UPDATE {schema}.credentials SET value = '{text}'")).await;
            conflicts(storage.set_credential_if("a", of(3), Unchanged(revision)).await);
            conflicts(storage.set_credential_if("a", of(3), Absent).await);
            conflicts(storage.delete_credential_if("a", revision).await);
            let (found, revision) = storage.get_credential_with_revision("a").await?;
            assert_eq!(found.fields()["n"], json!(if text == "{\"n\":2}" { 2 } else { 1 }));
            storage.set_credential_if("a", of(3), Unchanged(revision)).await?;
        }
        let (_, revision) = storage.get_credential_with_revision("a").await?;
        execute(&other, &format!("DELETE FROM {schema}.credentials")).await;
        conflicts(storage.set_credential_if("a", of(4), Unchanged(revision)).await);
        let error = storage.delete_credential_if("a", revision).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        execute(&other, &format!("INSERT INTO {schema}.credentials VALUES ('a', '[1]')")).await;
        conflicts(storage.set_credential_if("a", of(4), Absent).await);
        let corrupt = storage.get_credential_with_revision("a").await.unwrap_err();
        assert_eq!((corrupt.kind(), corrupt.key().is_some()), (ErrorKind::Corrupt, true));
        storage.close().await?;
    }
    Ok(())
}

/// Runs a call that waits for an open transaction of another program, which then ends.
async fn while_changing<T: Send + 'static>(
    (holder, change, end): (&Client, String, &str),
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    execute(holder, &format!("BEGIN; {change}")).await;
    let call = tokio::spawn(call);
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))";
    while holder.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(!call.is_finished(), "the call did not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    execute(holder, end).await;
    call.await.unwrap()
}

#[tokio::test]
async fn a_call_that_waits_for_a_lock_compares_the_newest_row() -> Result {
    let url = servers::postgres();
    let (storage, schema, other) = (open(&url).await, schema(&url), raw(&url).await);
    let set = |storage: &Storage<Postgres>, condition| {
        let storage = storage.clone();
        async move { storage.set_credential_if("a", of(9), condition).await }
    };
    let delete = |storage: &Storage<Postgres>, revision| {
        let storage = storage.clone();
        async move { storage.delete_credential_if("a", revision).await }
    };
    let update = format!("UPDATE {schema}.credentials SET value = '{{\"n\":2}}'");
    let same = format!("UPDATE {schema}.credentials SET value = value");
    let remove = format!("DELETE FROM {schema}.credentials");
    let insert = format!("INSERT INTO {schema}.credentials VALUES ('a', '{{\"n\":2}}')");

    conflicts(while_changing((&other, insert.clone(), "COMMIT"), set(&storage, Absent)).await);
    storage.delete_credential("a").await?;
    while_changing((&other, insert, "ROLLBACK"), set(&storage, Absent)).await?;

    for (change, end, sets, deletes) in [
        (&update, "COMMIT", false, Some(ErrorKind::Conflict)),
        (&update, "ROLLBACK", true, None),
        (&same, "COMMIT", true, None),
        (&remove, "COMMIT", false, Some(ErrorKind::NotFound)),
        (&remove, "ROLLBACK", true, None),
    ] {
        storage.set_credential("a", of(1)).await?;
        let (_, revision) = storage.get_credential_with_revision("a").await?;
        let result = while_changing((&other, change.clone(), end), set(&storage, Unchanged(revision))).await;
        if sets {
            result?;
            assert_eq!(storage.get_credential("a").await?, of(9));
        } else {
            conflicts(result);
        }
        storage.set_credential("a", of(1)).await?;
        let result = while_changing((&other, change.clone(), end), delete(&storage, revision)).await;
        assert_eq!(result.err().map(|error| error.kind()), deletes, "{change} {end}");
    }
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_beside_another_program() -> Result {
    let url = servers::postgres();
    let (storage, schema) = (open(&url).await, schema(&url));
    storage.set_credential("a", of(0)).await?;
    let times = rounds(30) as u64;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (storage, other) = (storage.clone(), raw(&url).await);
        tasks.push(tokio::spawn(async move {
            let mut counted = 0;
            while counted < times {
                let (found, revision) = storage.get_credential_with_revision("a").await.unwrap();
                let next = of(found.fields()["n"].as_u64().unwrap() + 1);
                match storage.set_credential_if("a", next, Unchanged(revision)).await {
                    Ok(_) => counted += 1,
                    error => conflicts(error),
                }
            }
        }));
        let count = format!(
            "UPDATE {schema}.credentials SET value = json_build_object('n', (value->>'n')::bigint + 1)"
        );
        tasks.push(tokio::spawn(async move {
            for _ in 0..times {
                execute(&other, &count).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(storage.get_credential("a").await?, of(8 * times));
    storage.close().await
}
