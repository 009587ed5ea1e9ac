//! Problems of the remote block neither opening nor writes.

use std::{fs, time::Duration};

use gateway_storage::{ErrorKind, Git, History, Outcome, Storage, git::GitSync};
use serde_json::json;

use super::{
    git, is_clean,
    shared::{Clones, value},
};

#[tokio::test]
async fn a_conflict_does_not_stop_a_start() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("b", json!(0)).await.unwrap();
    let other = clones.open("other").await;
    one.close().await.unwrap();
    let mut config = clones.config("one");
    (config.pull, config.push) = (GitSync::Manual, GitSync::Manual);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("b", json!(1)).await.unwrap();
    one.close().await.unwrap();
    other.set_config("b", json!(2)).await.unwrap();

    let one = clones.open("one").await;
    assert_eq!(value(&one, "b").await, json!(1));
    one.set_config("c", json!(1)).await.unwrap();
    let stats = one.stats().await.unwrap();
    let warning = stats.details["warnings"][0].as_str().unwrap();
    assert!(warning.contains("change the same record"), "{warning}");
    assert_eq!((&stats.details["ahead"], &stats.details["behind"]), (&json!(2), &json!(1)));
    one.close().await.unwrap();
    is_clean(&clones.at("one"));
}

#[tokio::test]
async fn a_damaged_record_of_others_does_not_stop_a_start() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.close().await.unwrap();
    clones.by_hand("config/a.json", "{ broken");
    let one = clones.open("one").await;
    assert_eq!(value(&one, "a").await, json!(1));
    let stats = one.stats().await.unwrap();
    assert_eq!(stats.details["behind"], json!(1));
    assert_eq!(stats.details["warnings"].as_array().unwrap().len(), 1);
    one.close().await.unwrap();
    // A clone without data can't open.
    let error = Storage::<Git>::open(clones.config("new")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_revert_to_an_unreadable_value_is_not_sent() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    clones.by_hand("config/a.json", "{ broken");
    let fix = clones.by_hand("config/a.json", "5");
    one.backend().pull().await.unwrap();
    assert_eq!(value(&one, "a").await, json!(5));
    let error = one.backend().revert(fix.parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(git(&clones.at("remote.git"), &["rev-parse", "main"]).trim(), fix);
}

#[tokio::test]
async fn a_locked_branch_at_the_remote_does_not_stop_a_write() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    let lock = clones.at("remote.git/refs/heads/main.lock");
    fs::write(&lock, "").unwrap();
    for key in ["b", "c"] {
        one.set_config(key, json!(2)).await.unwrap();
    }
    let stats = one.stats().await.unwrap();
    assert_eq!(stats.details["ahead"], json!(2));
    let warning = stats.details["warnings"][0].as_str().unwrap();
    assert!(warning.contains("has locked the remote's branch"), "{warning}");
    assert_eq!(one.backend().push().await.unwrap_err().kind(), ErrorKind::Busy);
    fs::remove_file(lock).unwrap();
    one.backend().push().await.unwrap();
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn commits_that_a_server_refuses_are_kept_and_reported() {
    let clones = Clones::served();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    let hook = clones.hook("exit 1");
    one.set_config("b", json!(1)).await.unwrap();
    assert_eq!(one.backend().push().await.unwrap_err().kind(), ErrorKind::Denied);
    let backend = one.backend().clone();
    assert!(backend.unsent().is_none());
    one.close().await.unwrap();
    let unsent = backend.unsent().unwrap();
    assert_eq!((unsent.commits, unsent.reason.unwrap().kind()), (1, ErrorKind::Denied));
    assert_eq!(git(&clones.at("remote.git"), &["rev-list", "--count", "main"]), "1\n");

    fs::remove_file(hook).unwrap();
    let one = clones.open("one").await;
    let backend = one.backend().clone();
    one.close().await.unwrap();
    assert!(backend.unsent().is_none());
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn dropping_a_handle_sends_nothing() {
    let clones = Clones::new();
    let mut config = clones.config("one");
    config.push = GitSync::Interval;
    let one = Storage::<Git>::open(config.clone()).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    drop(one);
    let here = git(&clones.at("remote.git"), &["for-each-ref"]);
    assert_eq!(here, "");
    let one = Storage::<Git>::open(config).await.unwrap();
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn a_remote_that_never_answers_does_not_stop_a_write() {
    let clones = Clones::new();
    clones.open("one").await.set_config("a", json!(1)).await.unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = clones.config("one");
    config.remote = Some(format!("git://127.0.0.1:{}/x.git", silent.local_addr().unwrap().port()));
    config.remote_timeout = Duration::from_millis(200);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("b", json!(2)).await.unwrap();
    assert_eq!(value(&one, "b").await, json!(2));
    let stats = one.stats().await.unwrap();
    let warning = stats.details["warnings"][0].as_str().unwrap();
    assert!(warning.contains("did not answer within `remote_timeout`"), "{warning}");
    one.close().await.unwrap();
}

/// The number of runs of the hook.
fn asked(clones: &Clones) -> usize {
    fs::read_to_string(clones.at("asked")).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn a_rejecting_remote_is_contacted_once_per_interval() {
    let clones = Clones::served();
    let log = clones.at("asked");
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    let script = "echo x >> ASKED; printf 'no \\033[31mcommits' >&2; exit 1";
    let hook = clones.hook(&script.replace("ASKED", log.to_str().unwrap()));
    one.set_config("b", json!(0)).await.unwrap();
    let known = asked(&clones);
    assert!(known > 1, "one refusal may be a race");
    for step in 1..12 {
        one.set_config("b", json!(step)).await.unwrap();
    }
    assert_eq!(asked(&clones), known, "the interval is an hour");
    // The remote's message is in the stats, and in no error.
    let error = one.backend().push().await.unwrap_err();
    assert_eq!((error.kind(), asked(&clones)), (ErrorKind::Denied, known + 1));
    assert!(!format!("{error:?}").contains("no "), "{error:?}");
    // The commits of others are still fetched.
    one.backend().pull().await.unwrap();
    let stats = one.stats().await.unwrap();
    assert_eq!(stats.details["remote_said"], "no [31mcommits pre-receive hook declined");
    assert!(stats.details["warnings"][0].as_str().unwrap().contains("may be protected"));
    one.set_config("b", json!(12)).await.unwrap();
    assert_eq!(asked(&clones), known + 1);

    fs::remove_file(hook).unwrap();
    one.backend().push().await.unwrap();
    let stats = one.stats().await.unwrap();
    assert_eq!((&stats.details["warnings"], stats.details.get("remote_said")), (&json!([]), None));
    one.set_config("c", json!(1)).await.unwrap();
    assert_eq!(clones.there(), 15, "it is sent again with each write");
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn a_rejecting_remote_is_tried_again() {
    let clones = Clones::served();
    let mut config = clones.config("one");
    config.interval = Duration::from_millis(1500);
    config.push = GitSync::Interval;
    let one = Storage::<Git>::open(config).await.unwrap();
    let log = clones.at("asked");
    let hook = clones.hook(&format!("echo x >> {}; exit 1", log.display()));
    one.set_config("a", json!(1)).await.unwrap();
    // The background also learns it after some rejections.
    let mut waited = 0;
    while asked(&clones) < 5 || one.stats().await.unwrap().details["warnings"] == json!([]) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += 1;
        assert!(waited < 600, "it is never reported: {:?}", one.stats().await.unwrap());
    }
    fs::remove_file(hook).unwrap();
    while one.stats().await.unwrap().details["ahead"] != json!(0) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += 1;
        assert!(waited < 1200, "it is never sent: {:?}", one.stats().await.unwrap());
    }
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

/// A late push may still arrive, so the outcome of a write that fails here is unknown.
#[tokio::test]
async fn the_outcome_of_a_late_push_is_unknown() {
    let clones = Clones::served();
    let mut config = clones.config("one");
    config.remote_timeout = Duration::from_secs(1);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    clones.hook("sleep 3");
    fs::write(clones.at("one/.git/refs/heads/main.lock"), "").unwrap();
    let error = one.set_config("b", json!(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::Unknown));
    fs::remove_file(clones.at("one/.git/refs/heads/main.lock")).unwrap();
    let mut waited = 0;
    while clones.there() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += 1;
        assert!(waited < 600, "the push was on its way");
    }
    one.backend().pull().await.unwrap();
    assert_eq!(value(&one, "b").await, json!(2));
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn a_remote_that_was_silent_is_used_again() {
    let clones = Clones::served();
    let relay = clones.relay();
    let mut config = clones.config("one");
    config.remote = Some(relay.url("remote.git"));
    config.remote_timeout = Duration::from_secs(1);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    relay.silence(true);
    // The abandoned connection stays silent for ever.
    one.set_config("b", json!(1)).await.unwrap();
    assert_eq!(one.backend().pull().await.unwrap_err().kind(), ErrorKind::Unavailable);
    relay.silence(false);
    one.backend().pull().await.unwrap();
    one.set_config("c", json!(1)).await.unwrap();
    assert_eq!(clones.there(), 3);
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn the_first_write_after_a_silence_is_sent() {
    let clones = Clones::served();
    let relay = clones.relay();
    let mut config = clones.config("one");
    config.remote = Some(relay.url("remote.git"));
    (config.remote_timeout, config.interval) = (Duration::from_secs(2), Duration::from_millis(100));
    // No background work.
    config.pull = GitSync::Manual;
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    relay.silence(true);
    one.set_config("b", json!(1)).await.unwrap();
    assert_eq!(clones.there(), 1);
    relay.silence(false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    one.set_config("c", json!(1)).await.unwrap();
    assert_eq!(clones.there(), 3);
    one.close().await.unwrap();
}

/// A request without a waiting caller is not executed once the remote is back.
#[tokio::test]
async fn a_push_that_was_given_up_is_not_sent() {
    let clones = Clones::served();
    let relay = clones.relay();
    let mut config = clones.config("one");
    config.remote = Some(relay.url("remote.git"));
    config.remote_timeout = Duration::from_millis(500);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    relay.silence(true);
    fs::write(clones.at("one/.git/refs/heads/main.lock"), "").unwrap();
    let error = one.set_config("b", json!(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
    fs::remove_file(clones.at("one/.git/refs/heads/main.lock")).unwrap();
    one.set_config("c", json!(1)).await.unwrap();
    one.close().await.unwrap();
    assert!(relay.release() > 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(clones.there(), 1);
}

#[tokio::test]
async fn the_last_handle_does_not_wait_for_the_remote() {
    let clones = Clones::served();
    let relay = clones.relay();
    let mut config = clones.config("one");
    config.remote = Some(relay.url("remote.git"));
    (config.remote_timeout, config.deadline) = (Duration::from_secs(120), Duration::from_secs(120));
    let one = Storage::<Git>::open(config.clone()).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    relay.silence(true);
    let writer = one.clone();
    let write = tokio::spawn(async move { writer.set_config("b", json!(2)).await });
    for round in 0.. {
        assert!(round < 600, "nothing is sent");
        if relay.held() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    let begun = std::time::Instant::now();
    drop(one);
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());

    // The commit is kept here and sent later.
    config.pull = GitSync::Manual;
    let one = Storage::<Git>::open(config).await.unwrap();
    assert_eq!(value(&one, "b").await, json!(2));
    assert_eq!(one.stats().await.unwrap().details["ahead"], json!(1));
    relay.silence(false);
    one.backend().push().await.unwrap();
    assert_eq!(clones.there(), 2);
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}
