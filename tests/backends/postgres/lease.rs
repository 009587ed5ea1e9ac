//! Leases as rows: contention, what is forgotten, and rows of other programs.

use std::time::Duration;

use gateway_storage::{
    ErrorKind, Outcome,
    lease::{Claim, Holder, Lease},
};
use tokio_postgres::Client;

use super::{
    Result, key, open, raw, rounds, schema,
    servers::{self, postgres::Server},
};
use crate::lease::{MINUTE, claim, claimed, winner};

/// Runs SQL, in which `{t}` is the table, and returns the first column.
async fn sql(client: &Client, url: &str, sql: &str) -> Vec<String> {
    let rows = client.simple_query(&sql.replace("{t}", &format!("{}.leases", schema(url)))).await.unwrap();
    let column = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    rows.iter().filter_map(column).collect()
}

/// Makes all leases end.
const END: &str = "UPDATE {t} SET ends = clock_timestamp()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_callers_one_has_the_lease() -> Result {
    for url in [servers::postgres(), servers::pgbouncer()] {
        let other = raw(&if url.contains("pgbouncer") { servers::postgres() } else { url.clone() }).await;
        let handles = [open(&url).await, open(&url).await];
        let mut last = 0;
        for round in 0..rounds(30) {
            let winner = &winner(&handles, MINUTE).await;
            assert!(winner.number() > last, "round {round}");
            last = winner.number();
            match round % 4 {
                // The row is there, is gone, or was never there.
                0 | 1 => handles[1].release_lease(winner, Duration::ZERO).await?,
                2 => drop(sql(&other, &url, END).await),
                _ => drop(sql(&other, &url, "DELETE FROM {t}").await),
            }
        }
        for storage in handles {
            storage.close().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_forget_ended_leases_do_not_deadlock() -> Result {
    let url = servers::postgres();
    let other = raw(&url).await;
    let names: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    for _ in 0..rounds(10) {
        // The first claim of each handle forgets.
        let mut handles = Vec::new();
        for _ in 0..8 {
            handles.push(open(&url).await);
        }
        let old = "INSERT INTO {t} SELECT 'n' || n, 'old', 1, clock_timestamp() - interval '2 hours' \
                   FROM generate_series(0, 39) AS n ON CONFLICT (name) DO UPDATE SET ends = excluded.ends";
        sql(&other, &url, old).await;
        let claims: Vec<_> = handles
            .iter()
            .enumerate()
            .map(|(n, storage)| {
                let (storage, name) = (storage.clone(), names[n * 5].clone());
                tokio::spawn(async move { claimed(&storage, &name).await })
            })
            .collect();
        for claim in claims {
            claim.await.unwrap();
        }
        assert_eq!(sql(&other, &url, "SELECT count(*) FROM {t} WHERE holder = 'old'").await, ["0"]);
        assert_eq!(handles[0].list_leases().await?.len(), 8);
        for storage in handles {
            storage.close().await?;
        }
        sql(&other, &url, "DELETE FROM {t}").await;
    }
    Ok(())
}

#[tokio::test]
async fn a_claim_waits_for_no_ended_lease_of_another_name() -> Result {
    let url = servers::postgres();
    let (storage, other, observer) = (open(&url).await, raw(&url).await, raw(&url).await);
    let old = "INSERT INTO {t} SELECT n, 'old', 1, clock_timestamp() - interval '2 hours' FROM unnest(ARRAY['a', 'b', 'c']) AS n";
    sql(&observer, &url, old).await;
    // Another process claims one of them at the same time.
    sql(
        &other,
        &url,
        "BEGIN; UPDATE {t} SET holder = 'x', ends = clock_timestamp() + interval '1 minute' WHERE name = 'b'",
    )
    .await;
    claimed(&storage, "d").await;
    assert_eq!(sql(&observer, &url, "SELECT name FROM {t} ORDER BY name").await, ["b", "d"]);
    sql(&other, &url, "COMMIT").await;
    assert!(matches!(claim(&storage, "b", &Holder::random()).await?, Claim::Theirs { .. }));
    storage.close().await
}

#[tokio::test]
async fn leases_that_ended_over_an_hour_ago_are_forgotten() -> Result {
    for url in [servers::postgres(), servers::pgbouncer()] {
        let storage = open(&url).await;
        let other = raw(&servers::postgres()).await;
        let rows = async || sql(&other, &url, "SELECT name FROM {t} ORDER BY name").await;
        let put = "INSERT INTO {t} VALUES ('old', NULL, 1, clock_timestamp() - interval '61 minutes'), \
                   ('new', NULL, 1, clock_timestamp() - interval '59 minutes')";
        sql(&other, &url, put).await;
        // A refused claim writes nothing.
        let lease = "INSERT INTO {t} VALUES ('theirs', 'x', 1, clock_timestamp() + interval '1 minute')";
        sql(&other, &url, lease).await;
        assert!(matches!(claim(&storage, "theirs", &Holder::random()).await?, Claim::Theirs { .. }));
        assert_eq!(rows().await, ["new", "old", "theirs"]);
        claimed(&storage, "a").await;
        assert_eq!(rows().await, ["a", "new", "theirs"]);
        // Later one of 64 claims does it.
        sql(&other, &url, "UPDATE {t} SET ends = ends - interval '2 minutes' WHERE name = 'new'").await;
        let lease = claimed(&storage, "b").await;
        assert_eq!(rows().await, ["a", "b", "new", "theirs"]);
        for _ in 0..64 {
            claim(&storage, "b", lease.holder()).await?;
        }
        assert_eq!(rows().await, ["a", "b", "theirs"]);
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn numbers_grow_past_a_stored_and_a_deleted_one() -> Result {
    let url = servers::postgres();
    let (storage, other) = (open(&url).await, raw(&url).await);
    let first = claimed(&storage, "a").await;
    sql(&other, &url, "DELETE FROM {t}").await;
    let second = claimed(&storage, "a").await;
    assert!(second.number() > first.number());
    // The server's clock was set back, or was ahead.
    let ahead = "UPDATE {t} SET number = 9000000000000000, ends = clock_timestamp()";
    sql(&other, &url, ahead).await;
    let third = claimed(&storage, "a").await;
    assert_eq!(third.number(), 9_000_000_000_000_001);
    // An earlier lease changes nothing, also with the same holder.
    for stale in
        [first, Lease::new(key("a"), third.holder().clone(), second.number(), tokio::time::Instant::now())]
    {
        storage.release_lease(&stale, Duration::ZERO).await?;
        let error = storage.renew_lease(&stale, MINUTE).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, false));
    }
    let renewed = storage.renew_lease(&third, MINUTE).await?;
    assert_eq!((renewed.number(), storage.list_leases().await?.len()), (third.number(), 1));
    storage.close().await
}

#[tokio::test]
async fn a_refused_claim_writes_nothing_and_a_renewal_no_index() -> Result {
    // Transactions of other tests would keep old versions of the row.
    let server = Server::start(&["autovacuum=off"]);
    let url = server.url();
    let (storage, other) = (open(&url).await, raw(&url).await);
    let lease = claimed(&storage, "a").await;
    let row = async || sql(&other, &url, "SELECT ctid || ' ' || xmin || ' ' || xmax FROM {t}").await;
    let before = row().await;
    for _ in 0..10 {
        assert!(matches!(claim(&storage, "a", &Holder::random()).await?, Claim::Theirs { .. }));
    }
    assert_eq!(row().await, before);
    for _ in 0..rounds(500) {
        storage.renew_lease(&lease, MINUTE).await?;
    }
    // Each is a HOT update, so old versions go without a vacuum.
    assert_eq!(sql(&other, &url, "SELECT pg_relation_size('{t}') / 8192").await, ["1"]);
    storage.close().await
}

#[tokio::test]
async fn a_claim_that_waits_for_another_reads_the_clock_after_it() -> Result {
    let url = servers::postgres();
    let (storage, other) = (open(&url).await, raw(&url).await);
    for (change, end, is_mine) in [
        // A row that the claim does not see when it begins.
        ("INSERT INTO {t} VALUES ('a', 'x', 7, clock_timestamp() + interval '9 seconds')", "COMMIT", false),
        ("INSERT INTO {t} VALUES ('a', 'x', 7, clock_timestamp() + interval '9 seconds')", "ROLLBACK", true),
        ("INSERT INTO {t} VALUES ('a', 'x', 7, clock_timestamp())", "COMMIT", true),
        ("INSERT INTO {t} VALUES ('a', NULL, 7, clock_timestamp() + interval '9 seconds')", "COMMIT", false),
    ] {
        sql(&other, &url, "DELETE FROM {t}").await;
        sql(&other, &url, &format!("BEGIN; {change}")).await;
        let waiting = tokio::spawn({
            let storage = storage.clone();
            async move { claim(&storage, "a", &Holder::random()).await }
        });
        let blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))";
        while sql(&other, &url, blocked).await == ["0"] {
            assert!(!waiting.is_finished(), "the claim did not wait");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sql(&other, &url, end).await;
        match waiting.await.unwrap()? {
            Claim::Yours(_) => assert!(is_mine, "{change} {end}"),
            Claim::Theirs { left } => {
                assert!(!is_mine && left > Duration::ZERO && left <= Duration::from_secs(9), "{left:?}");
            }
        }
    }
    storage.close().await
}

#[tokio::test]
async fn rows_of_another_program_are_typed_errors() -> Result {
    let url = servers::postgres();
    let (storage, other) = (open(&url).await, raw(&url).await);
    let put = async |values: &str| {
        sql(&other, &url, &format!("DELETE FROM {{t}}; INSERT INTO {{t}} VALUES ({values})")).await;
    };
    let corrupt = |error: gateway_storage::Error| {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Corrupt, Outcome::NotApplied), "{error:?}");
        assert_eq!(error.key(), Some(&key("a")));
    };
    let mine: Holder = "mine".parse()?;
    // There is no number after this one.
    put("'a', 'x', 9223372036854775807, now()").await;
    corrupt(claim(&storage, "a", &mine).await.unwrap_err());
    put("'a', 'mine', -1, 'infinity'").await;
    corrupt(claim(&storage, "a", &mine).await.unwrap_err());
    put("'a', 'x', 1, 'infinity'").await;
    corrupt(claim(&storage, "a", &mine).await.unwrap_err());
    corrupt(storage.list_leases().await.unwrap_err());
    for listed in ["'a', 'x', -1, now() + interval '1 day'", "'a', 'x y', 1, now() + interval '1 day'"] {
        put(listed).await;
        corrupt(storage.list_leases().await.unwrap_err());
        assert!(matches!(claim(&storage, "a", &mine).await?, Claim::Theirs { .. }));
    }
    put("'', 'x', 1, now() + interval '1 day'").await;
    assert_eq!(storage.list_leases().await.unwrap_err().kind(), ErrorKind::Corrupt);
    // A wrong number of a lease that has ended is replaced.
    put("'a', 'x', -1, now()").await;
    assert!(claimed(&storage, "a").await.number() > 1_700_000_000_000_000);
    // The column was altered by hand.
    sql(&other, &url, "ALTER TABLE {t} ALTER number DROP NOT NULL").await;
    put("'a', 'x', NULL, now() + interval '1 day'").await;
    corrupt(storage.list_leases().await.unwrap_err());
    put("'a', 'mine', NULL, now() + interval '1 day'").await;
    corrupt(claim(&storage, "a", &mine).await.unwrap_err());
    // Its first claim had no number either.
    put("'a', 'x', NULL, now()").await;
    assert!(claimed(&storage, "a").await.number() > 1_700_000_000_000_000);
    // The table is gone.
    sql(&other, &url, "DROP TABLE {t}").await;
    corrupt(claim(&storage, "a", &mine).await.unwrap_err());
    storage.close().await
}
