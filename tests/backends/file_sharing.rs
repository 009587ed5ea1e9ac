//! Several handles of one File store: what each mode of sharing allows.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use gateway_storage::{
    Error, ErrorKind, File, FileOptions, Key, Outcome, Sharing, Storage, Verify,
    history::DocumentKind,
    lease::{Claim, Holder},
    plan::{Applied, ApplyOptions, Plan},
    revision::Condition,
    watch::{Event, WatchOptions},
};
use serde_json::json;
use tempfile::TempDir;

use super::file::{exclusive, open, reading, shared};

#[tokio::test]
async fn one_handle_at_a_time_opens_an_exclusive_store() {
    let base = TempDir::new().unwrap();
    let storage = exclusive(base.path()).await.unwrap();
    for mode in [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter] {
        busy(shared(base.path(), mode).await);
        busy(reading(base.path(), mode).await);
    }

    let other = storage.clone();
    storage.close().await.unwrap();
    assert_eq!(other.get_config("a").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(other.set_config("a", json!(1)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(other.health().await.unwrap_err().kind(), ErrorKind::Closed);
    other.close().await.expect("closing again is fine");
    drop(exclusive(base.path()).await.expect("a closed store can be opened at once"));
    drop(exclusive(base.path()).await.expect("a dropped store can be opened at once"));
}

/// Asserts that the store is refused because it is open elsewhere, with an error that says what to do.
#[track_caller]
fn busy(opened: Result<Storage<File>, Error>) {
    let error = opened.expect_err("the store is open elsewhere");
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
    let message = error.to_string();
    assert!(
        message.contains("is already open") && message.contains("`shared`") && message.contains("`wait`"),
        "{message}"
    );
}

/// Each handle sees what the other has written, from its cache or not, and changes what the other has stored.
#[tokio::test]
async fn several_handles_write_to_a_store() {
    let base = TempDir::new().unwrap();
    let (one, two) = (open(base.path()).await.unwrap(), open(base.path()).await.expect("they share a store"));
    let reader = reading(base.path(), Sharing::MultiWriter).await.expect("a reader shares it, too");
    let id = Key::new("a").unwrap();
    for round in 0..50 {
        let (writer, other) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        writer.set_credential(&id, json!({ "round": round })).await.unwrap();
        writer.set_config("a", json!(round)).await.unwrap();
        assert_eq!(other.increment_usage("a", "n", 1).await.unwrap(), round + 1);
        for handle in [writer, other, &reader] {
            // Twice, so that the second read is one of the cache.
            for _ in 0..2 {
                assert_eq!(handle.get_credential(&id).await.unwrap().get("round"), Some(&json!(round)));
                assert_eq!(handle.get_config("a").await.unwrap().value(), &json!(round));
            }
            let found = handle.get_credentials(std::slice::from_ref(&id)).await.unwrap();
            assert_eq!(found.values[&id].get("round"), Some(&json!(round)));
            assert_eq!(handle.get_usage("a").await.unwrap().get("n"), Some(round + 1));
            let stats = handle.stats().await.unwrap();
            assert_eq!((stats.credential_count, stats.config_count, stats.usage_record_count), (1, 1, 1));
        }
    }
    // A claim, a plan and a conditional write of one handle count for the other.
    let (holder, another) = (Holder::random(), Holder::random());
    let claim = one.claim_lease("l", &holder, Duration::from_secs(60)).await.unwrap();
    assert!(matches!(claim, Claim::Yours(_)));
    let claim = two.claim_lease("l", &another, Duration::from_secs(60)).await.unwrap();
    assert!(matches!(claim, Claim::Theirs { .. }));
    let plan = Plan::from_json(r#"[{"set":"p","value":1}]"#).unwrap();
    let options = ApplyOptions::default();
    assert_eq!(one.apply_plan("k", &plan, &options).await.unwrap(), Applied::Applied);
    assert_eq!(two.apply_plan("k", &plan, &options).await.unwrap(), Applied::Replayed);
    let first = one.set_config_if("if", json!(1), Condition::Absent).await.unwrap();
    two.set_config_if("if", json!(2), Condition::Absent).await.unwrap_err();
    two.set_config_if("if", json!(2), Condition::Unchanged(first)).await.unwrap();
    one.set_config_if("if", json!(3), Condition::Unchanged(first)).await.unwrap_err();

    one.delete_credential(&id).await.unwrap();
    assert_eq!(two.get_credential(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    one.close().await.unwrap();
    two.set_config("a", json!("after one is closed")).await.unwrap();
    assert_eq!(reader.get_config("a").await.unwrap().value(), &json!("after one is closed"));
    two.close().await.unwrap();
    assert_eq!(reader.list_configs().await.unwrap().len(), 3, "a reader goes on without a writer");
    let three = open(base.path()).await.expect("a writer opens beside a reader");
    three.set_config("a", json!("three")).await.unwrap();
    assert_eq!(reader.get_config("a").await.unwrap().value(), &json!("three"));
}

#[tokio::test]
async fn readers_follow_a_single_writer() {
    let base = TempDir::new().unwrap();
    let writer = shared(base.path(), Sharing::SingleWriter).await.unwrap();
    writer.set_config("a", json!(0)).await.unwrap();
    busy(shared(base.path(), Sharing::SingleWriter).await);
    let reader = reading(base.path(), Sharing::SingleWriter).await.expect("it is read beside a writer");
    for round in 1..20 {
        writer.set_config("a", json!(round)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(reader.get_config("a").await.unwrap().value(), &json!(round));
        }
    }
    assert_eq!(reader.set_config("a", json!(1)).await.unwrap_err().kind(), ErrorKind::Denied);
    drop(writer);
    assert_eq!(reader.get_config("a").await.unwrap().value(), &json!(19));
    let writer = shared(base.path(), Sharing::SingleWriter).await.expect("a reader keeps no writer out");
    writer.set_config("a", json!("next")).await.unwrap();
    assert_eq!(reader.get_config("a").await.unwrap().value(), &json!("next"));
}

/// A reader need not know that the writer is the only one, which does not count its commits.
#[tokio::test]
async fn a_reader_of_either_mode_follows_a_single_writer() {
    let base = TempDir::new().unwrap();
    // Several writers have counted theirs before.
    let before = open(base.path()).await.unwrap();
    before.set_config("a", json!(0)).await.unwrap();
    before.close().await.unwrap();
    let writer = shared(base.path(), Sharing::SingleWriter).await.unwrap();
    for mode in [Sharing::SingleWriter, Sharing::MultiWriter] {
        let reader = reading(base.path(), mode).await.unwrap();
        let mut events = pin!(reader.watch(WatchOptions::default()));
        assert!(matches!(events.next().await, Some(Ok(Event::Resync { .. }))));
        for round in 1..5 {
            writer.set_config("a", json!(round)).await.unwrap();
            // Of this kind, which comes after the other one.
            while !matches!(
                events.next().await.unwrap().unwrap(),
                Event::Changed { kind: DocumentKind::Config, key: None, .. }
            ) {}
            for _ in 0..3 {
                assert_eq!(reader.get_config("a").await.unwrap().value(), &json!(round), "{mode:?}");
            }
        }
    }
}

/// Handles with other values of `shared` keep one another out, and the error says so.
#[tokio::test]
async fn handles_that_share_a_store_have_the_same_mode() {
    let modes = [Sharing::Exclusive, Sharing::SingleWriter, Sharing::MultiWriter];
    for first in modes {
        for second in modes {
            let base = TempDir::new().unwrap();
            let open = shared(base.path(), first).await.unwrap();
            open.set_config("a", json!(1)).await.unwrap();
            match shared(base.path(), second).await {
                Ok(_) => assert_eq!([first, second], [Sharing::MultiWriter; 2]),
                refused => busy(refused),
            }
            // A reader must know a mode without other writers; those with some look the same to it.
            let may_read = first != Sharing::Exclusive && second != Sharing::Exclusive;
            match reading(base.path(), second).await {
                Ok(reader) => {
                    assert!(may_read, "{first:?}, {second:?}");
                    open.set_config("a", json!(2)).await.unwrap();
                    assert_eq!(reader.get_config("a").await.unwrap().value(), &json!(2));
                }
                refused => {
                    assert!(!may_read, "{first:?}, {second:?}: {refused:?}");
                    busy(refused);
                }
            }
        }
    }
}

/// Many open a new store at once, as replicas that start together do.
#[tokio::test(flavor = "multi_thread")]
async fn handles_that_open_a_new_store_together_share_it() {
    for verify in [Verify::Always, Verify::Unclean] {
        let base = TempDir::new().unwrap();
        let opened = (0..8).map(|n| {
            let options = FileOptions::new(base.path()).with_verify(verify);
            tokio::spawn(async move {
                let storage = Storage::<File>::open(options).await?;
                storage.set_config(format!("{n}"), json!(n)).await?;
                Ok::<_, Error>(storage)
            })
        });
        for storage in futures_util::future::join_all(opened).await {
            let storage = storage.unwrap().expect("each opens it");
            storage.set_config("a", json!(1)).await.unwrap();
        }
        assert_eq!(open(base.path()).await.unwrap().list_configs().await.unwrap().len(), 9);
    }
}
