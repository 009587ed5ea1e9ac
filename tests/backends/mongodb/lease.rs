//! Leases as documents: contention, what is deleted, documents of other programs, and the lease of plans
//! beside that of earlier versions.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use gateway_storage::{
    ErrorKind, MongoDb, Outcome, Storage,
    lease::{Claim, Holder, Lease},
    plan::{Applied, ApplyOptions, Plan},
};
use mongodb::{
    Database,
    bson::{Bson, DateTime, Document, doc},
};
use serde_json::json;

use super::{
    Result, documents, key, open, raw, rounds,
    servers::{self, mongodb::Server, proxy::Proxy},
};
use crate::lease::{MINUTE, claim, claimed, winner};

fn from_now(millis: i64) -> DateTime {
    DateTime::from_millis(DateTime::now().timestamp_millis() + millis)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_callers_one_has_the_lease() -> Result {
    for url in [servers::mongodb(), servers::mongodb_alone()] {
        let handles = [open(&url).await, open(&url).await];
        let stored = documents(&url, "leases").await;
        let mut last = 0;
        for round in 0..rounds(30) {
            // The server takes the time of a command when it begins, so a later one may be before it.
            let winner = &winner(&handles, MINUTE * 2 - Duration::from_millis(1)).await;
            assert!(winner.number() > last, "round {round}");
            last = winner.number();
            match round % 4 {
                // The document is there, is gone, or was never there.
                0 | 1 => handles[1].release_lease(winner, Duration::ZERO).await?,
                2 => {
                    drop(stored.update_one(doc! {}, doc! { "$set": { "lease": from_now(0) } }).await.unwrap())
                }
                _ => drop(stored.delete_one(doc! {}).await.unwrap()),
            }
        }
        for storage in handles {
            storage.close().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_claim_is_one_command_that_writes_nothing() -> Result {
    let url = servers::mongodb();
    let (storage, database) = (open(&url).await, raw(&url).await);
    let stored = documents(&url, "leases").await;
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let profile = database.collection::<Document>("system.profile");
    let sent = async || profile.count_documents(doc! { "command.findAndModify": "leases" }).await.unwrap();
    let oplog = database.client().database("local").collection::<Document>("oplog.rs");
    let namespace = format!("{}.leases", database.name());
    let written = async || oplog.count_documents(doc! { "ns": &namespace }).await.unwrap();
    let names = |found: &Document| {
        let mut names: Vec<String> = found.keys().cloned().collect();
        names.sort();
        names
    };
    let lease = claimed(&storage, "a").await;
    let found = stored.find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(names(&found), ["_id", "holder", "lease", "number"]);
    assert_eq!(found.get_i64("number").unwrap() as u64, lease.number());
    assert_eq!((sent().await, written().await), (1, 1));
    for _ in 0..5 {
        assert!(matches!(claim(&storage, "a", &Holder::random()).await?, Claim::Theirs { .. }));
    }
    assert_eq!((sent().await, written().await), (6, 1));
    assert_eq!(stored.find_one(doc! {}).await.unwrap().unwrap(), found);
    storage.release_lease(&storage.renew_lease(&lease, MINUTE).await?, MINUTE).await?;
    let found = stored.find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(names(&found), ["_id", "lease", "number"]);
    assert!(matches!(claim(&storage, "a", lease.holder()).await?, Claim::Theirs { .. }), "it rests");
    assert_eq!((sent().await, written().await), (9, 3));
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    storage.close().await
}

#[tokio::test]
async fn the_majority_acknowledges_a_lease_whatever_the_options_say() -> Result {
    let url = servers::mongodb();
    let (storage, database) = (open(&format!("{url}&w=1")).await, raw(&url).await);
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let lease = claimed(&storage, "a").await;
    storage.renew_lease(&lease, MINUTE).await?;
    storage.release_lease(&lease, Duration::ZERO).await?;
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = database.collection::<Document>("system.profile");
    let found = profile.find(doc! { "command.findAndModify": "leases" }).await.unwrap();
    let found: Vec<_> = found.try_collect().await.unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    for command in found {
        let concern = command.get_document("command").unwrap().get_document("writeConcern").unwrap();
        assert_eq!(concern.get_str("w").unwrap(), "majority", "{command}");
    }
    storage.close().await
}

#[tokio::test]
async fn leases_that_ended_over_an_hour_ago_are_deleted() -> Result {
    let server = Server::start(&["--setParameter", "ttlMonitorSleepSecs=1"]);
    for is_old in [false, true] {
        let url = server.url(if is_old { "old" } else { "new" });
        let stored = documents(&url, "leases").await;
        let mut storage = open(&url).await;
        if is_old {
            // A store of an earlier version gets the index when it is opened.
            storage.close().await?;
            stored.drop().await.unwrap();
            storage = open(&url).await;
        }
        let minute = 60_000;
        let ended = [("old", -61 * minute), ("new", -59 * minute), ("later", minute)];
        let ended = ended.map(|(name, end)| doc! { "_id": name, "number": 1_i64, "lease": from_now(end) });
        stored.insert_many(ended).await.unwrap();
        let begun = Instant::now();
        while stored.count_documents(doc! { "_id": "old" }).await.unwrap() > 0 {
            assert!(begun.elapsed() < MINUTE, "it stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(stored.count_documents(doc! {}).await.unwrap(), 2);
        storage.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn numbers_grow_past_a_stored_and_a_deleted_one() -> Result {
    let url = servers::mongodb();
    let (storage, stored) = (open(&url).await, documents(&url, "leases").await);
    let first = claimed(&storage, "a").await;
    stored.delete_one(doc! {}).await.unwrap();
    // The clock of the numbers has milliseconds.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let second = claimed(&storage, "a").await;
    assert!(second.number() > first.number());
    // The server's clock was set back, or was ahead.
    let ahead = doc! { "$set": { "number": 9_000_000_000_000_000_i64, "lease": from_now(0) } };
    stored.update_one(doc! {}, ahead).await.unwrap();
    let third = claimed(&storage, "a").await;
    assert_eq!(third.number(), 9_000_000_000_000_001);
    // An earlier lease changes nothing, also with the same holder.
    let same_holder =
        Lease::new(key("a"), third.holder().clone(), second.number(), tokio::time::Instant::now());
    for stale in [first, same_holder] {
        storage.release_lease(&stale, Duration::ZERO).await?;
        let error = storage.renew_lease(&stale, MINUTE).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, false));
    }
    let renewed = storage.renew_lease(&third, MINUTE).await?;
    assert_eq!((renewed.number(), storage.list_leases().await?.len()), (third.number(), 1));
    storage.close().await
}

#[tokio::test]
async fn names_and_holders_are_never_expressions() -> Result {
    let url = servers::mongodb();
    let storage = open(&url).await;
    for text in ["$number", "$$NOW", "$literal", "a.b", "."] {
        let holder: Holder = text.parse()?;
        let Claim::Yours(lease) = claim(&storage, text, &holder).await? else { panic!("{text}") };
        let Claim::Yours(again) = claim(&storage, text, &holder).await? else { panic!("{text}") };
        assert_eq!(again.number(), lease.number());
        assert!(matches!(claim(&storage, text, &"x".parse()?).await?, Claim::Theirs { .. }));
        let listed = storage.list_leases().await?;
        assert_eq!((listed.len(), &listed[0].name, &listed[0].holder), (1, &key(text), &Some(holder)));
        storage.release_lease(&storage.renew_lease(&lease, MINUTE).await?, Duration::ZERO).await?;
    }
    storage.close().await
}

#[tokio::test]
async fn documents_of_another_program_are_typed_errors() -> Result {
    let url = servers::mongodb();
    let (storage, stored) = (open(&url).await, documents(&url, "leases").await);
    let put = async |fields: &Document| {
        stored.replace_one(doc! { "_id": "a" }, fields).upsert(true).await.unwrap();
    };
    let corrupt = |error: gateway_storage::Error, of: &Document| {
        assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&key("a"))), "{of}: {error:?}");
        assert_eq!(error.outcome(), Outcome::NotApplied, "{of}");
    };
    let mine: Holder = "mine".parse()?;
    let (past, future) = (from_now(-1000), from_now(60_000));
    for fields in [
        // There is no number after this one.
        doc! { "holder": "x", "number": i64::MAX, "lease": past },
        doc! { "holder": "x", "number": "many", "lease": past },
        doc! { "holder": "x", "number": 1e300, "lease": past },
        doc! { "number": i64::MAX },
        doc! { "holder": "x", "number": 1_i64, "lease": Bson::MaxKey },
        doc! { "holder": 5, "number": 1_i64, "lease": future },
        doc! { "holder": "mine", "number": -1_i64, "lease": future },
        doc! { "holder": "mine", "number": 1.5, "lease": future },
        doc! { "holder": "mine", "lease": future },
    ] {
        put(&fields).await;
        corrupt(claim(&storage, "a", &mine).await.unwrap_err(), &fields);
    }
    for fields in [
        doc! { "lease": future },
        doc! { "holder": "x", "number": -1_i64, "lease": future },
        doc! { "holder": "x y", "number": 1_i64, "lease": future },
    ] {
        put(&fields).await;
        corrupt(storage.list_leases().await.unwrap_err(), &fields);
        assert!(matches!(claim(&storage, "a", &mine).await?, Claim::Theirs { .. }), "{fields}");
    }
    // As a shell writes them.
    put(&doc! { "number": 7, "holder": "mine", "lease": future }).await;
    let Claim::Yours(lease) = claim(&storage, "a", &mine).await? else { panic!("it is another's") };
    assert_eq!((lease.number(), storage.renew_lease(&lease, MINUTE).await?.number()), (7, 7));
    // Without an end it is free, and a wrong number of a lease that has ended is replaced.
    for fields in [doc! {}, doc! { "note": 1 }, doc! { "lease": "x" }, doc! { "number": -5, "lease": past }] {
        put(&fields).await;
        assert!(storage.list_leases().await?.is_empty());
        assert!(claimed(&storage, "a").await.number() > 1_700_000_000_000_000, "{fields}");
    }
    storage.close().await
}

#[tokio::test]
async fn leases_work_without_the_right_to_create_indexes() -> Result {
    let mut server = Server::start(&[]);
    let actions = ["find", "insert", "update", "remove", "listCollections", "createCollection"];
    let own = doc! { "resource": { "db": "own", "collection": "" }, "actions": actions.as_slice() };
    let concern = doc! { "w": 1, "j": true };
    let role =
        doc! { "createRole": "plain", "privileges": [own], "roles": [], "writeConcern": concern.clone() };
    server.ask("own", role);
    let user = doc! { "createUser": "carol", "pwd": "secret", "roles": ["plain"], "writeConcern": concern };
    server.ask("own", user);
    server.kill();
    server.add_option("--auth");
    server.restart();
    let storage = open(&format!("mongodb://carol:secret@{}/own", server.addr())).await;
    let lease = claimed(&storage, "a").await;
    storage.release_lease(&lease, Duration::ZERO).await?;
    assert!(claimed(&storage, "a").await.number() > lease.number());
    assert_eq!(storage.list_leases().await?.len(), 1);
    storage.close().await
}

/// The lease of plans as the version before leases claims it. None: another attempt holds it.
async fn old_claim(database: &Database) -> Option<i64> {
    let next = doc! { "$add": [{ "$ifNull": ["$number", 0_i64] }, 1_i64] };
    let fields = doc! { "number": next, "now": "$$NOW", "lease": { "$add": ["$$NOW", 10_000_i64] } };
    let take = doc! {
        "findAndModify": "meta", "query": { "_id": "plans", "$expr": { "$lte": ["$lease", "$$NOW"] } },
        "update": [{ "$set": fields }], "upsert": false, "new": true,
    };
    let reply = database.run_command(take).await.unwrap();
    if let Ok(taken) = reply.get_document("value") {
        return Some(taken.get_i64("number").unwrap());
    }
    let insert =
        doc! { "q": { "_id": "plans" }, "u": { "$setOnInsert": { "number": 0_i64 } }, "upsert": true };
    database.run_command(doc! { "update": "meta", "updates": [insert] }).await.unwrap();
    None
}

async fn old_renew(database: &Database, number: i64) -> bool {
    let lease = doc! { "$set": { "lease": { "$add": ["$$NOW", 10_000_i64] } } };
    let change = doc! { "q": { "_id": "plans", "number": number }, "u": [lease] };
    let reply = database.run_command(doc! { "update": "meta", "updates": [change] }).await.unwrap();
    reply.get_i32("n").unwrap() == 1
}

async fn old_release(database: &Database, number: i64) {
    let change = doc! { "q": { "_id": "plans", "number": number }, "u": { "$unset": { "lease": 1 } } };
    database.run_command(doc! { "update": "meta", "updates": [change] }).await.unwrap();
}

fn plan(n: usize) -> Plan {
    Plan::from_json(json!([{ "set": "a", "value": n }]).to_string()).unwrap()
}

async fn apply(storage: &Storage<MongoDb>, key: &str, n: usize) -> Result<Applied> {
    storage.apply_plan(key, &plan(n), &ApplyOptions::default()).await
}

#[tokio::test]
async fn a_plan_and_one_of_the_version_before_exclude_each_other() -> Result {
    let url = servers::mongodb_alone();
    let address = url.split('/').nth(2).unwrap();
    let proxy = Proxy::start(address.to_owned()).await;
    let (storage, database) = (open(&url.replace(address, &proxy.addr)).await, raw(&url).await);
    // The old one creates the document.
    assert_eq!(old_claim(&database).await, None);
    let number = old_claim(&database).await.unwrap();
    let hurried = storage.clone().with_deadline(Duration::from_millis(300));
    let error = loop {
        let error = apply(&hurried, "refused", 0).await.unwrap_err();
        // At the deadline an attempt may be on its way.
        if error.kind() != ErrorKind::Timeout {
            break error;
        }
    };
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied), "{error:?}");
    assert!(old_renew(&database, number).await, "the new one changed the number");
    old_release(&database, number).await;
    apply(&storage, "first", 1).await?;

    // Both, one after the other: the old one leaves the field `holder` as it is.
    let meta = documents(&url, "meta").await;
    for n in 0..rounds(3) {
        proxy.delay_replies(Duration::from_millis(100));
        let slow = tokio::spawn({
            let storage = storage.clone();
            async move { apply(&storage, &format!("slow {n}"), n).await }
        });
        let holds =
            doc! { "_id": "plans", "holder": { "$exists": true }, "$expr": { "$gt": ["$lease", "$$NOW"] } };
        let taken = loop {
            assert!(!slow.is_finished(), "the plan holds no lease");
            if let Some(found) = meta.find_one(holds.clone()).await.unwrap() {
                break found.get_i64("number").unwrap();
            }
        };
        assert_eq!(old_claim(&database).await, None);
        proxy.delay_replies(Duration::ZERO);
        slow.await.unwrap()?;
        let old = old_claim(&database).await.unwrap();
        assert_eq!(old, taken + 1);
        // As if that process had died: its lease ends.
        if n % 2 == 0 {
            meta.update_one(doc! { "_id": "plans" }, doc! { "$set": { "lease": from_now(-1) } })
                .await
                .unwrap();
        } else {
            old_release(&database, old).await;
        }
        apply(&storage, &format!("next {n}"), n).await?;
        assert!(!old_renew(&database, old).await, "it does not notice the new one");
    }
    storage.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_beside_the_version_before_are_one_at_a_time() -> Result {
    let url = servers::mongodb_alone();
    let times = rounds(25);
    let mut new = Vec::new();
    for task in 0..2 {
        let storage = open(&url).await.with_deadline(MINUTE);
        new.push(tokio::spawn(async move {
            for n in 0..times {
                assert_eq!(apply(&storage, &format!("{task} {n}"), n).await.unwrap(), Applied::Applied);
            }
            storage.close().await
        }));
    }
    let mut old = Vec::new();
    for _ in 0..2 {
        let (database, audit) = (raw(&url).await, documents(&url, "plan_audit").await);
        old.push(tokio::spawn(async move {
            let mut numbers = Vec::new();
            while numbers.len() < times {
                let Some(number) = old_claim(&database).await else { continue };
                let before = audit.count_documents(doc! {}).await.unwrap();
                for _ in 0..3 {
                    assert!(old_renew(&database, number).await);
                    assert_eq!(audit.count_documents(doc! {}).await.unwrap(), before, "a plan was applied");
                }
                old_release(&database, number).await;
                numbers.push(number);
                tokio::task::yield_now().await;
            }
            numbers
        }));
    }
    let mut numbers = Vec::new();
    for task in old {
        numbers.extend(task.await.unwrap());
    }
    for task in new {
        task.await.unwrap()?;
    }
    let audit = documents(&url, "plan_audit").await.find(doc! {}).await.unwrap();
    let audit: Vec<Document> = audit.try_collect().await.unwrap();
    numbers.extend(audit.iter().map(|entry| entry.get_i64("_id").unwrap()));
    assert_eq!(numbers.len(), 4 * times);
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 4 * times, "two attempts have one number");
    Ok(())
}
