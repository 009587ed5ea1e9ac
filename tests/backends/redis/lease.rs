//! Leases of several handles, their keys, beside other programs, without replicas, in a cluster.

use gateway_storage::lease::{Claim, Holder, Lease, MAX_LEASE_TTL};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: u64 = 60 * 60 * 1000;

#[track_caller]
fn yours(claim: Claim) -> Lease {
    match claim {
        Claim::Yours(lease) => lease,
        Claim::Theirs { left } => panic!("it is another's for {left:?}"),
    }
}

#[track_caller]
fn theirs(claim: Claim) -> Duration {
    match claim {
        Claim::Yours(lease) => panic!("{lease:?}"),
        Claim::Theirs { left } => left,
    }
}

async fn claim(storage: &Storage<Redis>, name: &str, holder: &Holder, ttl: Duration) -> Result<Claim> {
    storage.claim_lease(name, holder, ttl).await
}

#[track_caller]
fn is_lost(error: &gateway_storage::Error) {
    let facts = (error.kind(), error.outcome(), error.is_retryable(), error.key());
    assert_eq!(facts, (ErrorKind::Conflict, Outcome::NotApplied, false, Some(&key("a"))), "{error:?}");
}

/// Two stores with pools of their own, as two processes have them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_callers_has_a_lease() -> Result {
    const CALLERS: usize = 8;
    const TIMES: usize = 25;
    let url = servers::redis();
    let stores = [Storage::<Redis>::open(url.as_str()).await?, Storage::<Redis>::open(url.as_str()).await?];
    let (inside, numbers) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let callers: Vec<_> = (0..CALLERS)
        .map(|n| {
            let (storage, inside, numbers) = (stores[n % 2].clone(), inside.clone(), numbers.clone());
            tokio::spawn(async move {
                for _ in 0..TIMES {
                    let holder = Holder::random();
                    let lease = yours(storage.wait_for_lease("a", &holder, MINUTE, MINUTE).await.unwrap());
                    assert!(!inside.swap(true, Ordering::SeqCst), "two callers have it");
                    numbers.lock().unwrap().push(lease.number());
                    let renewed = storage.renew_lease(&lease, MINUTE * 2).await.unwrap();
                    assert!(renewed.number() == lease.number() && renewed.time_left() > MINUTE);
                    inside.store(false, Ordering::SeqCst);
                    storage.release_lease(&renewed, Duration::ZERO).await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let numbers = numbers.lock().unwrap().clone();
    assert!(numbers.len() == CALLERS * TIMES && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert_eq!(stores[0].list_leases().await?, []);
    let [one, other] = stores;
    one.close().await?;
    other.close().await
}

#[tokio::test]
async fn a_lease_is_one_key_under_the_prefix_that_expires_an_hour_after_its_end() -> Result {
    let server = Server::start(&[]);
    let (mut raw, holder) = (server.raw(), Holder::labelled("host-1")?);
    let storage = Storage::<Redis>::open(format!("{}?prefix=app:", server.url()).as_str()).await?;
    let time = |raw: &mut Raw| -> u64 {
        let time = raw.words("TIME");
        let (seconds, micros) = time.trim_end().split_once('\n').unwrap();
        seconds.parse::<u64>().unwrap() * 1_000_000 + micros.parse::<u64>().unwrap()
    };
    let state = |raw: &mut Raw| -> (u64, u64, String, u64) {
        let value = raw.words("GET app:lease:a");
        let [number, end, holder]: [&str; 3] = value.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let expires = raw.words("PTTL app:lease:a").parse().unwrap();
        (number.parse().unwrap(), end.parse().unwrap(), holder.to_owned(), expires)
    };
    let mut number = 0;
    for ttl in [Duration::from_millis(1), MINUTE, MAX_LEASE_TTL] {
        let before = time(&mut raw);
        let lease = yours(claim(&storage, "a", &holder, ttl).await?);
        let (stored, end, by, expires) = state(&mut raw);
        let (after, micros) = (time(&mut raw), ttl.as_micros() as u64);
        assert!((before + micros..=after + micros).contains(&end), "{before} {end} {after}");
        assert_eq!((stored, by.as_str()), (lease.number(), holder.as_str()));
        // Between the end and an hour later.
        let end = (end - before) / 1000;
        assert!((end.saturating_sub((after - before) / 1000)..=end + HOUR).contains(&expires), "{expires}");
        assert!(lease.number() > number && lease.time_left() <= ttl);
        number = lease.number();
        storage.release_lease(&lease, Duration::ZERO).await?;
        let (stored, end, by, expires) = state(&mut raw);
        assert_eq!((stored, by.as_str()), (number, ""));
        assert!(end <= time(&mut raw) && (1..=HOUR).contains(&expires), "{end} {expires}");
    }
    assert_eq!(raw.words("KEYS *"), "app:lease:a\n");
    storage.close().await
}

#[tokio::test]
async fn numbers_grow_if_the_key_is_deleted_or_the_clock_was_ahead() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let holder = Holder::random();
    let first = yours(claim(&storage, "a", &holder, MINUTE).await?);
    server.raw().words("DEL gcli2api:lease:a");
    is_lost(&storage.renew_lease(&first, MINUTE).await.unwrap_err());
    storage.release_lease(&first, MINUTE).await?;
    assert_eq!(server.raw().words("EXISTS gcli2api:lease:a"), "0");
    let second = yours(claim(&storage, "a", &holder, MINUTE).await?);
    assert!(second.number() > first.number());
    is_lost(&storage.renew_lease(&first, MINUTE).await.unwrap_err());
    storage.release_lease(&first, MINUTE).await?;
    storage.renew_lease(&second, MINUTE).await?;
    let ahead = 1 << 52;
    server.raw().ask(&[b"SET", b"gcli2api:lease:a", format!("{ahead} 1 ").as_bytes()]);
    for number in ahead + 1..ahead + 4 {
        let lease = yours(claim(&storage, "a", &holder, MINUTE).await?);
        assert_eq!(lease.number(), number);
        storage.release_lease(&lease, Duration::ZERO).await?;
    }
    storage.close().await
}

/// A holder that was paused for longer than its lease.
#[tokio::test]
async fn a_late_holder_changes_nothing() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let (late, next) = (Holder::random(), Holder::random());
    let ended = yours(claim(&storage, "a", &late, Duration::from_millis(20)).await?);
    let current = yours(storage.wait_for_lease("a", &next, MINUTE, MINUTE).await?);
    assert!(current.number() > ended.number() && ended.time_left() == Duration::ZERO);
    let before = server.raw().words("GET gcli2api:lease:a");
    is_lost(&storage.renew_lease(&ended, MINUTE).await.unwrap_err());
    storage.release_lease(&ended, MINUTE).await?;
    let left = theirs(claim(&storage, "a", &late, MINUTE).await?);
    assert!(left <= MINUTE && left > MINUTE / 2, "{left:?}");
    assert_eq!(server.raw().words("GET gcli2api:lease:a"), before);
    // It rests, and the release that is repeated does not prolong that.
    storage.release_lease(&current, MINUTE * 2).await?;
    let before = server.raw().words("GET gcli2api:lease:a");
    storage.release_lease(&current, MINUTE * 4).await?;
    is_lost(&storage.renew_lease(&current, MINUTE).await.unwrap_err());
    assert!(theirs(claim(&storage, "a", &next, MINUTE).await?) > MINUTE);
    assert_eq!(server.raw().words("GET gcli2api:lease:a"), before);
    let [state] = storage.list_leases().await?.try_into().unwrap();
    assert_eq!((state.name, state.holder, state.number), (key("a"), None, current.number()));
    assert!(state.left > MINUTE && state.left <= MINUTE * 2);
    // The server counts none of these answers as an error.
    let counts = server.raw().words("INFO commandstats");
    let evals = counts.lines().find(|line| line.starts_with("cmdstat_eval:")).unwrap();
    assert!(evals.contains("failed_calls=0"), "{evals}");
    storage.close().await
}

/// The server runs the script after the caller has given up.
#[tokio::test]
async fn a_claim_whose_reply_is_lost_is_found_again() -> Result {
    let server = Server::start(&[]);
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let holder = Holder::random();
    storage.list_leases().await?;
    server.signal("-STOP");
    let hurried = storage.with_deadline(Duration::from_millis(100));
    let error = claim(&hurried, "a", &holder, MINUTE).await.unwrap_err();
    let facts = (error.kind(), error.outcome(), error.key());
    assert_eq!(facts, (ErrorKind::Timeout, Outcome::Unknown, Some(&key("a"))), "{error:?}");
    server.signal("-CONT");
    servers::until("the claim is applied", || server.raw().words("EXISTS gcli2api:lease:a") == "1");
    let value = server.raw().words("GET gcli2api:lease:a");
    theirs(claim(&storage, "a", &Holder::random(), MINUTE).await?);
    let lease = yours(claim(&storage, "a", &holder, MINUTE).await?);
    assert!(value.starts_with(&lease.number().to_string()), "{value}");
    storage.close().await
}

#[tokio::test]
async fn the_value_of_another_program_is_not_changed() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let holder = Holder::random();
    let lease = Lease::new(key("a"), holder.clone(), 1, tokio::time::Instant::now());
    let large = (1_u64 << 53).to_string();
    for value in [
        "",
        "text",
        "1 2",
        " 1 2 x",
        "1 2 x y",
        "1 2 x\n",
        "1 2 \u{e9}",
        "-1 2 x",
        "1.5 2 x",
        "0x1 2 x",
        &format!("{large} 2 x"),
        &format!("1 {large} x"),
        &format!("{} 2 x", "9".repeat(400)),
    ] {
        raw.ask(&[b"SET", b"gcli2api:lease:a", value.as_bytes()]);
        for error in [
            claim(&storage, "a", &holder, MINUTE).await.unwrap_err(),
            storage.renew_lease(&lease, MINUTE).await.unwrap_err(),
            storage.release_lease(&lease, MINUTE).await.unwrap_err(),
            storage.list_leases().await.unwrap_err(),
        ] {
            let facts = (error.kind(), error.outcome(), error.key());
            assert_eq!(
                facts,
                (ErrorKind::Corrupt, Outcome::NotApplied, Some(&key("a"))),
                "{value:?} {error:?}"
            );
        }
        assert_eq!(
            (raw.words("GET gcli2api:lease:a").as_str(), &*raw.words("PTTL gcli2api:lease:a")),
            (value, "-1")
        );
    }
    raw.words("DEL gcli2api:lease:a");
    raw.words("HSET gcli2api:lease:a x y");
    for error in [
        claim(&storage, "a", &holder, MINUTE).await.unwrap_err(),
        storage.renew_lease(&lease, MINUTE).await.unwrap_err(),
        storage.release_lease(&lease, MINUTE).await.unwrap_err(),
        storage.list_leases().await.unwrap_err(),
    ] {
        let facts = (error.kind(), error.code(), error.outcome(), error.key());
        let expected = (ErrorKind::Corrupt, Some("WRONGTYPE"), Outcome::NotApplied, Some(&key("a")));
        assert_eq!(facts, expected, "{error:?}");
    }
    assert_eq!(raw.words("HGETALL gcli2api:lease:a"), "x\ny\n");
    // A holder that is too long: the lease is another's, and can't be listed.
    raw.words("DEL gcli2api:lease:a");
    raw.ask(&[b"SET", b"gcli2api:lease:a", format!("1 {} {}", 1_u64 << 52, "x".repeat(129)).as_bytes()]);
    assert!(theirs(claim(&storage, "a", &holder, MINUTE).await?) > MAX_LEASE_TTL);
    assert_eq!(storage.list_leases().await.unwrap_err().kind(), ErrorKind::Corrupt);
    // Other leases are usable.
    yours(claim(&storage, "b", &holder, MINUTE).await?);
    storage.close().await
}

/// A lease is not a record.
#[tokio::test]
async fn leases_are_not_counted_or_exported() -> Result {
    let url = servers::redis();
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let lease = yours(claim(&storage, "alice", &Holder::random(), MINUTE).await?);
    let stats = storage.stats().await?;
    let counts = (stats.credential_count, stats.config_count, stats.usage_record_count);
    assert_eq!((counts, &stats.details["cache_count"]), ((0, 0, 0), &json!(0)));
    assert_eq!(storage.export().count().await, 0);
    assert_eq!((storage.list_credentials().await?, storage.list_usage().await?.len()), (vec![], 0));
    storage.set_credential("alice", json!({})).await?;
    storage.delete_credential("alice").await?;
    storage.renew_lease(&lease, MINUTE).await?;
    storage.close().await
}

/// Only what was written can be unconfirmed.
#[tokio::test]
async fn a_claim_waits_for_its_replicas_and_a_refusal_does_not_fail() -> Result {
    let server = Server::start(&[]);
    let url = format!("{}?wait_replicas=1&wait_timeout=10ms", server.url());
    let storage = Storage::<Redis>::open(url.as_str()).await?;
    let (holder, other) = (Holder::random(), Holder::random());
    #[track_caller]
    fn is_unconfirmed<T: std::fmt::Debug>(result: Result<T>) {
        let error = result.unwrap_err();
        let facts = (error.kind(), error.outcome(), error.key());
        assert_eq!(facts, (ErrorKind::Unavailable, Outcome::Unknown, Some(&key("a"))), "{error:?}");
    }
    is_unconfirmed(claim(&storage, "a", &holder, MINUTE).await);
    is_unconfirmed(claim(&storage, "a", &holder, MINUTE).await);
    assert!(theirs(claim(&storage, "a", &other, MINUTE).await?) > MINUTE / 2);
    // It is the lease of the first attempt.
    let alone = Storage::<Redis>::open(server.url().as_str()).await?;
    let number = alone.list_leases().await?[0].number;
    let lease = yours(claim(&alone, "a", &holder, MINUTE).await?);
    assert_eq!(lease.number(), number);
    is_unconfirmed(storage.renew_lease(&lease, MINUTE).await);
    assert_eq!(storage.list_leases().await?.len(), 1);
    is_unconfirmed(storage.release_lease(&lease, MINUTE).await);
    storage.release_lease(&lease, MINUTE).await?;
    is_lost(&storage.renew_lease(&lease, MINUTE).await.unwrap_err());
    assert!(theirs(claim(&storage, "a", &holder, MINUTE).await?) > MINUTE / 2);

    // With a replica the same holder gets it.
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", server.port)]);
    servers::until("the replica follows", || server.raw().words("WAIT 1 1000") == "1");
    let url = format!("{}?wait_replicas=1&wait_timeout=4s", server.url());
    let confirmed = Storage::<Redis>::open(url.as_str()).await?;
    server.raw().words("DEL gcli2api:lease:a");
    replica.signal("-STOP");
    is_unconfirmed(claim(&storage, "a", &holder, MINUTE).await);
    replica.signal("-CONT");
    yours(claim(&confirmed, "a", &holder, MINUTE).await?);
    assert_eq!(replica.raw().words("GET gcli2api:lease:a"), server.raw().words("GET gcli2api:lease:a"));
    for storage in [storage, alone, confirmed] {
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_full_server_and_a_replica_grant_no_lease() -> Result {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    let storage = Storage::<Redis>::open(server.url().as_str()).await?;
    let lease = yours(claim(&storage, "a", &Holder::random(), MINUTE).await?);
    let before = raw.words("GET gcli2api:lease:a");
    for (set, unset, kind, code) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", ErrorKind::Busy, "OOM"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", ErrorKind::Unavailable, "READONLY"),
    ] {
        raw.words(set);
        for error in [
            claim(&storage, "b", &Holder::random(), MINUTE).await.unwrap_err(),
            storage.renew_lease(&lease, MINUTE).await.unwrap_err(),
            storage.release_lease(&lease, MINUTE).await.unwrap_err(),
        ] {
            let facts = (error.kind(), error.code(), error.outcome(), error.is_retryable());
            assert_eq!(facts, (kind, Some(code), Outcome::NotApplied, true), "{error:?}");
        }
        raw.words(unset);
    }
    assert_eq!((raw.words("GET gcli2api:lease:a"), raw.words("DBSIZE")), (before, "1".to_owned()));
    storage.renew_lease(&lease, MINUTE).await?;
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lists_the_leases_of_all_servers() -> Result {
    let cluster = Cluster::start(3, 0);
    let storage = Storage::<Redis>::open(cluster.url().as_str()).await?;
    let names: Vec<Key> = (0..200).map(|n| key(&format!("n{n:03}"))).chain([key("{tag}{")]).collect();
    let mut leases = Vec::new();
    for name in &names {
        leases.push(yours(storage.claim_lease(name, &Holder::random(), MINUTE).await?));
        theirs(storage.claim_lease(name, &Holder::random(), MINUTE).await?);
    }
    let states = storage.list_leases().await?;
    let listed: Vec<_> =
        states.iter().map(|state| (&state.name, state.holder.as_ref(), state.number)).collect();
    let expected: Vec<_> =
        leases.iter().map(|lease| (lease.name(), Some(lease.holder()), lease.number())).collect();
    assert_eq!(listed, expected);
    assert!(states.iter().all(|state| state.left <= MINUTE && state.left > MINUTE / 2));
    for node in &cluster.nodes {
        assert_ne!(node.raw().words("DBSIZE"), "0");
    }
    for lease in &leases {
        let renewed = storage.renew_lease(lease, MINUTE).await?;
        storage.release_lease(&renewed, Duration::ZERO).await?;
    }
    assert_eq!(storage.list_leases().await?, []);
    storage.close().await
}
