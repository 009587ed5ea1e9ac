//! What is wrong with the remote stops neither a start nor a write.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use gateway_storage::{ErrorKind, Git, GitSync, Storage, Versioned};
use serde_json::json;

use crate::{
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
    // Who has nothing yet has nothing to go on with.
    let error = Storage::<Git>::open(clones.config("new")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn what_a_revert_can_not_read_is_not_sent() {
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
async fn a_branch_that_is_held_at_the_remote_does_not_stop_a_write() {
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
    assert!(warning.contains("holds the remote's branch"), "{warning}");
    assert_eq!(one.backend().push().await.unwrap_err().kind(), ErrorKind::Busy);
    fs::remove_file(lock).unwrap();
    one.backend().push().await.unwrap();
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn what_a_server_refuses_is_kept_and_told() {
    let clones = Clones::served();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    let hook = clones.at("remote.git/hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
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
async fn a_handle_that_is_dropped_sends_nothing() {
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
    assert!(warning.contains("did not answer in time") && warning.contains("`remote_timeout`"), "{warning}");
    one.close().await.unwrap();
}
