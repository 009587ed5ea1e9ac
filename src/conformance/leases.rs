//! The contract of [`Leases`].

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    TASKS, concurrently, ends_well, fails, fails_about, hostile_keys, key, must, ok, same, same_keys, spawn,
};
use crate::{
    ErrorKind, Key, Result, Storage,
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState, MAX_HOLDER_BYTES, MAX_LEASE_TTL},
};

/// A lease that does not end during the test.
const LONG: Duration = Duration::from_secs(60);

/// A lease for whose end the test waits.
const SHORT: Duration = Duration::from_millis(100);

/// A rest that is long enough to be seen, and for whose end the test waits.
const REST: Duration = Duration::from_millis(250);

/// How much two clocks may differ: that of the server, perhaps in whole milliseconds, and that of this
/// process.
const CLOCKS: Duration = Duration::from_millis(20);

/// The pause between two questions whether a lease has ended.
const PAUSE: Duration = Duration::from_millis(10);

/// Asserts the contract of [`Leases`].
///
/// # Panics
///
/// At the first violated bullet.
pub async fn leases<B: Leases>(storage: &Storage<B>) {
    must("a store without leases lists none", lists_none(storage.clone())).await;
    must("a lease has one holder, and others get the time that is left", has_one_holder(storage.clone()))
        .await;
    must("the same holder again has the lease, with the same number", claims_again(storage.clone())).await;
    must("the number is greater than all earlier ones of the name", numbers_grow(storage.clone())).await;
    must("renew_lease makes the lease end later or earlier", renews(storage.clone())).await;
    must("renew_lease of a released lease is Conflict", renews_what_was_released(storage.clone())).await;
    must("release_lease of another's lease changes nothing", releases_anothers(storage.clone())).await;
    must("release_lease again changes nothing", releases_twice(storage.clone())).await;
    // Together, because each of them waits for the end of a lease.
    let of_time = [
        ("a lease that rests has no holder", spawn(rests(storage.clone()))),
        ("a lease ends by itself", spawn(ends(storage.clone()))),
        ("a rest ends by itself", spawn(rest_ends(storage.clone()))),
        ("renew_lease can make the lease end earlier", spawn(renewed_ends(storage.clone()))),
        ("renew_lease of a lease that has ended is Conflict", spawn(renews_what_ended(storage.clone()))),
        ("a holder whose lease was taken can't release it", spawn(releases_what_was_taken(storage.clone()))),
    ];
    for (bullet, task) in of_time {
        ends_well(bullet, task).await;
    }
    must("list_leases: what is held or rests, by name", lists(storage.clone())).await;
    must("a time that is zero or too long is InvalidValue", invalid_times(storage.clone())).await;
    must("any name and any holder", any_name(storage.clone())).await;
    must("of concurrent claims one is Yours", concurrent(storage.clone())).await;
    must("a store without leases lists none", lists_none(storage.clone())).await;
}

fn holder() -> Holder {
    Holder::random()
}

async fn claim<B: Leases>(storage: &Storage<B>, name: &Key, holder: &Holder, ttl: Duration) -> Claim {
    ok("claim_lease", storage.claim_lease(name, holder, ttl).await)
}

#[track_caller]
fn yours(what: &str, claim: Claim) -> Lease {
    match claim {
        Claim::Yours(lease) => lease,
        Claim::Theirs { left } => panic!("{what} is Theirs, for {left:?}"),
    }
}

#[track_caller]
fn theirs(what: &str, claim: Claim) -> Duration {
    match claim {
        Claim::Yours(_) => panic!("{what} is Yours"),
        Claim::Theirs { left } => left,
    }
}

/// A claim that must succeed.
async fn get<B: Leases>(storage: &Storage<B>, name: &Key, ttl: Duration) -> Lease {
    let holder = holder();
    let lease = yours("a claim of a free lease", claim(storage, name, &holder, ttl).await);
    same("the lease's name", name, lease.name());
    same("the lease's holder", &holder, lease.holder());
    assert!(lease.time_left() <= ttl + CLOCKS, "the lease has {:?} left, of {ttl:?}", lease.time_left());
    lease
}

async fn free<B: Leases>(storage: &Storage<B>, lease: &Lease) {
    ok("release_lease", storage.release_lease(lease, Duration::ZERO).await);
}

/// The lease of this name in the list.
async fn listed<B: Leases>(storage: &Storage<B>, name: &Key) -> Option<LeaseState> {
    let states = ok("list_leases", storage.list_leases().await);
    states.into_iter().find(|state| state.name == *name)
}

/// Claims until the lease is free, and returns it.
async fn wait_for<B: Leases>(storage: &Storage<B>, name: &Key) -> Lease {
    let holder = holder();
    loop {
        match claim(storage, name, &holder, LONG).await {
            Claim::Yours(lease) => return lease,
            Claim::Theirs { left } => {
                assert!(left <= SHORT + CLOCKS, "a lease of {SHORT:?} has {left:?} left");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Panics unless another holder gets this time, more or less. The lease is held meanwhile.
async fn is_held<B: Leases>(storage: &Storage<B>, lease: &Lease, ttl: Duration) {
    let left = theirs("a claim by another holder", claim(storage, lease.name(), &holder(), LONG).await);
    assert!(left <= ttl + CLOCKS, "a lease of {ttl:?} has {left:?} left");
    let least = lease.time_left();
    assert!(left + CLOCKS >= least, "{left:?} are left, but the holder was promised {least:?} more");
}

#[track_caller]
fn is_lost(what: &str, name: &Key, result: Result<Lease>) {
    if let Err(error) = &result {
        assert!(!error.is_retryable(), "{what}: the conflict is retryable, and would only occur again");
    }
    fails_about(what, ErrorKind::Conflict, name, result);
}

async fn lists_none<B: Leases>(storage: Storage<B>) {
    same_keys(
        "list_leases",
        &[],
        ok("list_leases", storage.list_leases().await).into_iter().map(|state| state.name),
    );
}

async fn has_one_holder<B: Leases>(storage: Storage<B>) {
    let name = key("held");
    let lease = get(&storage, &name, LONG).await;
    is_held(&storage, &lease, LONG).await;
    is_held(&storage, &lease, LONG).await;
    let other = get(&storage, &key("held too"), LONG).await;
    let renewed = ok("renew_lease", storage.renew_lease(&lease, LONG).await);
    same("the number of a lease that another holder claimed in vain", lease.number(), renewed.number());
    free(&storage, &other).await;
    free(&storage, &lease).await;
    let next = get(&storage, &name, LONG).await;
    free(&storage, &next).await;
}

async fn claims_again<B: Leases>(storage: Storage<B>) {
    let (name, holder) = (key("claimed again"), holder());
    let first = yours("a claim of a free lease", claim(&storage, &name, &holder, SHORT * 10).await);
    let again = yours("a claim by the same holder", claim(&storage, &name, &holder, LONG).await);
    same("the number", first.number(), again.number());
    let left = theirs("a claim by another holder", claim(&storage, &name, &self::holder(), LONG).await);
    assert!(left > SHORT * 10 + CLOCKS, "a second claim for {LONG:?} leaves the lease {left:?}");
    // The first answer names the same lease.
    let renewed = ok("renew_lease", storage.renew_lease(&first, LONG).await);
    same("the number", first.number(), renewed.number());
    let shorter = yours("a claim by the same holder", claim(&storage, &name, &holder, SHORT * 10).await);
    is_held(&storage, &shorter, SHORT * 10).await;
    free(&storage, &shorter).await;
}

async fn numbers_grow<B: Leases>(storage: Storage<B>) {
    let (name, holder) = (key("numbered"), holder());
    let mut last = 0;
    for round in 0..4 {
        // By two holders, one of which comes back.
        let by = if round % 2 == 0 { holder.clone() } else { self::holder() };
        let lease = yours("a claim of a free lease", claim(&storage, &name, &by, LONG).await);
        assert!(lease.number() > last, "the number {} comes after {last}", lease.number());
        last = lease.number();
        let renewed = ok("renew_lease", storage.renew_lease(&lease, LONG).await);
        same("the number of the renewed lease", last, renewed.number());
        same("the name of the renewed lease", &name, renewed.name());
        same("the holder of the renewed lease", &by, renewed.holder());
        same("the listed number", Some(last), listed(&storage, &name).await.map(|state| state.number));
        free(&storage, &renewed).await;
    }
}

async fn renews<B: Leases>(storage: Storage<B>) {
    let name = key("renewed");
    let lease = get(&storage, &name, SHORT * 10).await;
    let longer = ok("renew_lease", storage.renew_lease(&lease, LONG).await);
    let left = theirs("a claim by another holder", claim(&storage, &name, &holder(), LONG).await);
    assert!(left > SHORT * 10 + CLOCKS, "a renewal for {LONG:?} leaves the lease {left:?}");
    assert!(longer.time_left() <= LONG + CLOCKS, "the lease has {:?} left", longer.time_left());
    is_held(&storage, &longer, LONG).await;
    let shorter = ok("renew_lease", storage.renew_lease(&longer, SHORT * 10).await);
    is_held(&storage, &shorter, SHORT * 10).await;
    // An older answer names the same lease.
    let again = ok("renew_lease", storage.renew_lease(&lease, LONG).await);
    is_held(&storage, &again, LONG).await;
    free(&storage, &lease).await;
}

async fn renews_what_was_released<B: Leases>(storage: Storage<B>) {
    let (name, holder) = (key("renewed too late"), holder());
    let first = yours("a claim of a free lease", claim(&storage, &name, &holder, LONG).await);
    free(&storage, &first).await;
    is_lost("a renewal after a release", &name, storage.renew_lease(&first, LONG).await);
    let second = yours("a claim after a release", claim(&storage, &name, &holder, LONG).await);
    is_lost("a renewal with an old number", &name, storage.renew_lease(&first, LONG).await);
    let by_another = Lease::new(name.clone(), self::holder(), second.number(), Instant::now());
    is_lost("a renewal by another holder", &name, storage.renew_lease(&by_another, LONG).await);
    is_held(&storage, &second, LONG).await;
    ok("release_lease", storage.release_lease(&second, SHORT).await);
    is_lost("a renewal while it rests", &name, storage.renew_lease(&second, LONG).await);
    free(&storage, &wait_for(&storage, &name).await).await;
    let nowhere = Lease::new(key("never claimed"), holder, 1, Instant::now());
    let renewed = storage.renew_lease(&nowhere, LONG).await;
    is_lost("a renewal of what was never claimed", &key("never claimed"), renewed);
}

async fn releases_anothers<B: Leases>(storage: Storage<B>) {
    let (name, holder) = (key("released"), holder());
    let first = yours("a claim of a free lease", claim(&storage, &name, &holder, LONG).await);
    free(&storage, &first).await;
    let second = yours("a claim by the same holder", claim(&storage, &name, &holder, LONG).await);
    let by_another = Lease::new(name.clone(), self::holder(), second.number(), Instant::now());
    for wrong in [&first, &by_another] {
        free(&storage, wrong).await;
        ok("release_lease", storage.release_lease(wrong, LONG).await);
        same(
            "the holder",
            Some(Some(holder.clone())),
            listed(&storage, &name).await.map(|state| state.holder),
        );
        is_held(&storage, &second, LONG).await;
    }
    free(&storage, &second).await;
    let nowhere = Lease::new(key("never claimed"), holder, 1, Instant::now());
    ok("a release of what was never claimed", storage.release_lease(&nowhere, LONG).await);
    let lease = get(&storage, &key("never claimed"), LONG).await;
    free(&storage, &lease).await;
}

async fn releases_twice<B: Leases>(storage: Storage<B>) {
    let name = key("released twice");
    let lease = get(&storage, &name, LONG).await;
    free(&storage, &lease).await;
    ok("a second release", storage.release_lease(&lease, LONG).await);
    let next = get(&storage, &name, LONG).await;
    free(&storage, &lease).await;
    is_held(&storage, &next, LONG).await;
    free(&storage, &next).await;
}

async fn rests<B: Leases>(storage: Storage<B>) {
    let name = key("resting");
    let lease = get(&storage, &name, LONG).await;
    let begin = Instant::now();
    ok("release_lease", storage.release_lease(&lease, REST).await);
    let anyone = holder();
    for (what, by) in [
        ("a claim during a rest", &anyone),
        ("a claim during a rest by the last holder", lease.holder()),
        ("a claim after a second release", &anyone),
    ] {
        let claimed = claim(&storage, &name, by, LONG).await;
        // On a slow machine the rest is over before the answer.
        if begin.elapsed() + CLOCKS < REST {
            let left = theirs(what, claimed);
            assert!(left <= REST + CLOCKS, "a rest of {REST:?} has {left:?} left");
        } else if let Claim::Yours(lease) = claimed {
            free(&storage, &lease).await;
        }
        // A rest that was released again stays as it is.
        free(&storage, &lease).await;
    }
    wait_until_free(&storage, &lease).await;
    let next = get(&storage, &name, LONG).await;
    assert!(next.number() > lease.number(), "the number {} comes after {}", next.number(), lease.number());
    free(&storage, &next).await;
}

async fn lists<B: Leases>(storage: Storage<B>) {
    // Not in the order of the names.
    let names = ["list-b", "list-a", "list-é", "list-c", "list-B", "list-aa"].map(key);
    let mut leases = Vec::new();
    for name in &names {
        leases.push(get(&storage, name, LONG).await);
    }
    let (ended, resting) = (leases.remove(3), leases.remove(1));
    free(&storage, &ended).await;
    let begin = Instant::now();
    ok("release_lease", storage.release_lease(&resting, REST).await);
    let mut found = ok("list_leases", storage.list_leases().await);
    let mut wanted: Vec<Key> = names.iter().filter(|name| *name != ended.name()).cloned().collect();
    if begin.elapsed() + CLOCKS >= REST {
        // A slow machine: the rest may be over.
        wanted.retain(|name| name != resting.name());
        found.retain(|state| state.name != *resting.name());
    }
    wanted.sort();
    same_keys("list_leases", &wanted, found.iter().map(|state| state.name.clone()));
    for state in found {
        let held = leases.iter().find(|lease| *lease.name() == state.name);
        same("the listed number", held.unwrap_or(&resting).number(), state.number);
        same("the listed holder", held.map(|lease| lease.holder().clone()), state.holder);
        let most = if held.is_some() { LONG } else { REST };
        let least = held.map_or(Duration::ZERO, Lease::time_left);
        assert!(
            !state.left.is_zero() && state.left <= most + CLOCKS && state.left + CLOCKS >= least,
            "a lease of {most:?} is listed with {:?} left",
            state.left
        );
    }
    for lease in leases {
        free(&storage, &lease).await;
    }
    wait_until_free(&storage, &resting).await;
}

async fn invalid_times<B: Leases>(storage: Storage<B>) {
    let (name, holder) = (key("timed"), holder());
    let too_long = MAX_LEASE_TTL + Duration::from_millis(1);
    for ttl in [Duration::ZERO, too_long, Duration::MAX] {
        let what = format!("claim_lease for {ttl:?}");
        fails(what, ErrorKind::InvalidValue, storage.claim_lease(&name, &holder, ttl).await);
    }
    let lease = yours("a claim for the longest time", claim(&storage, &name, &holder, MAX_LEASE_TTL).await);
    for ttl in [Duration::ZERO, too_long, Duration::MAX] {
        let what = format!("renew_lease for {ttl:?}");
        fails(what, ErrorKind::InvalidValue, storage.renew_lease(&lease, ttl).await);
    }
    for rest in [too_long, Duration::MAX] {
        let what = format!("release_lease with a rest of {rest:?}");
        fails(what, ErrorKind::InvalidValue, storage.release_lease(&lease, rest).await);
    }
    is_held(&storage, &lease, MAX_LEASE_TTL).await;
    let lease = ok("renew_lease", storage.renew_lease(&lease, MAX_LEASE_TTL).await);
    is_held(&storage, &lease, MAX_LEASE_TTL).await;
    free(&storage, &lease).await;
}

async fn any_name<B: Leases>(storage: Storage<B>) {
    let all: String = (b'!'..=b'~').map(char::from).collect();
    let long = "x".repeat(MAX_HOLDER_BYTES);
    let holders = [all.as_str(), &long, "'", "\"", "\\", "$ne", "0", "-1", "null", "1e3", "[]", "{}"];
    let holders = holders.map(|text| text.parse::<Holder>().expect("the kit's own holders are valid"));
    let names = hostile_keys(storage.backend().max_key_bytes());
    let with_holders = || names.iter().zip(holders.iter().cycle());
    let claims = concurrently(with_holders().map(|(name, holder)| {
        let (storage, name, holder) = (storage.clone(), name.clone(), holder.clone());
        async move { yours("a claim of a free lease", claim(&storage, &name, &holder, LONG).await) }
    }));
    let leases = claims.await;
    let found = ok("list_leases", storage.list_leases().await);
    let mut wanted = names.clone();
    wanted.sort();
    same_keys("list_leases", &wanted, found.iter().map(|state| state.name.clone()));
    for (name, holder) in with_holders() {
        let state = found.iter().find(|state| state.name == *name);
        same("the listed holder", Some(Some(holder)), state.map(|state| state.holder.as_ref()));
    }
    concurrently(leases.into_iter().map(|lease| {
        let storage = storage.clone();
        async move {
            let renewed = ok("renew_lease", storage.renew_lease(&lease, LONG).await);
            free(&storage, &renewed).await;
        }
    }))
    .await;
    same_keys(
        "list_leases",
        &[],
        ok("list_leases", storage.list_leases().await).into_iter().map(|state| state.name),
    );
}

async fn concurrent<B: Leases>(storage: Storage<B>) {
    let name = key("contended");
    let mut last = 0;
    for _ in 0..2 {
        let claims = concurrently((0..TASKS).map(|_| {
            let (storage, name) = (storage.clone(), name.clone());
            async move { claim(&storage, &name, &holder(), LONG).await }
        }));
        let claims = claims.await.into_iter();
        let mut won: Vec<Lease> = claims
            .filter_map(|claim| match claim {
                Claim::Yours(lease) => Some(lease),
                Claim::Theirs { .. } => None,
            })
            .collect();
        same("the number of claims that are Yours", 1, won.len());
        let lease = won.remove(0);
        assert!(lease.number() > last, "the number {} comes after {last}", lease.number());
        last = lease.number();
        is_held(&storage, &lease, LONG).await;
        free(&storage, &lease).await;
    }
}

async fn ends<B: Leases>(storage: Storage<B>) {
    let name = key("ending");
    let lease = get(&storage, &name, SHORT).await;
    let next = wait_for(&storage, &name).await;
    let left = lease.time_left();
    assert!(left <= CLOCKS, "another holder has the lease {left:?} before its end");
    assert!(next.number() > lease.number(), "the number {} comes after {}", next.number(), lease.number());
    free(&storage, &next).await;
}

async fn rest_ends<B: Leases>(storage: Storage<B>) {
    let name = key("rested");
    let lease = get(&storage, &name, LONG).await;
    ok("release_lease", storage.release_lease(&lease, SHORT).await);
    free(&storage, &wait_for(&storage, &name).await).await;
}

async fn renewed_ends<B: Leases>(storage: Storage<B>) {
    let name = key("shortened");
    let lease = get(&storage, &name, LONG).await;
    let shorter = ok("renew_lease", storage.renew_lease(&lease, SHORT).await);
    let next = wait_for(&storage, &name).await;
    let left = shorter.time_left();
    assert!(left <= CLOCKS, "another holder has the lease {left:?} before its end");
    free(&storage, &next).await;
}

async fn renews_what_ended<B: Leases>(storage: Storage<B>) {
    let (name, holder) = (key("ended"), holder());
    let lease = yours("a claim of a free lease", claim(&storage, &name, &holder, SHORT).await);
    wait_until_free(&storage, &lease).await;
    is_lost("a renewal after the end", &name, storage.renew_lease(&lease, LONG).await);
    same("the listed lease", None, listed(&storage, &name).await);
    let next = yours("a claim after the end", claim(&storage, &name, &holder, LONG).await);
    assert!(next.number() > lease.number(), "the number {} comes after {}", next.number(), lease.number());
    free(&storage, &next).await;
}

async fn releases_what_was_taken<B: Leases>(storage: Storage<B>) {
    let name = key("taken");
    let lease = get(&storage, &name, SHORT).await;
    let next = wait_for(&storage, &name).await;
    for rest in [Duration::ZERO, LONG] {
        ok("release_lease", storage.release_lease(&lease, rest).await);
        is_held(&storage, &next, LONG).await;
    }
    is_lost("a renewal after it was taken", &name, storage.renew_lease(&lease, LONG).await);
    ok("renew_lease", storage.renew_lease(&next, LONG).await);
    free(&storage, &next).await;
}

/// Waits until the list does not have the lease: it has ended, and its rest is over.
async fn wait_until_free<B: Leases>(storage: &Storage<B>, lease: &Lease) {
    while listed(storage, lease.name()).await.is_some() {
        sleep(PAUSE).await;
    }
}
