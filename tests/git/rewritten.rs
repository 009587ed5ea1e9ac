//! What was removed from the remote's history does not come back from a clone.

use gateway_storage::{Error, ErrorKind, Git, GitSync, Storage};
use serde_json::json;

use crate::{
    bare, git, is_clean,
    shared::{Clones, value},
};

fn is_refused(error: &Error, words: &str) {
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, false));
    assert!(error.to_string().contains(words), "{error}");
}

const REWRITTEN: &str = "the remote's history was rewritten";

/// The history of the remote, as text.
fn told(clones: &Clones) -> String {
    git(&clones.at("remote.git"), &["log", "-p", "main"])
}

#[tokio::test]
async fn a_secret_stays_removed() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("leak", json!("LEAKED")).await.unwrap();
    one.delete_config("leak").await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    one.close().await.unwrap();

    let person = clones.person();
    git(&person, &["checkout", "--quiet", "--orphan", "clean"]);
    git(&person, &["commit", "--quiet", "-m", "clean"]);
    git(&person, &["push", "--quiet", "--force", "origin", "clean:main"]);
    let clean = git(&person, &["rev-parse", "clean"]);

    for _ in 0..2 {
        let one = clones.open("one").await;
        one.set_config("b", json!(1)).await.unwrap();
        is_refused(&one.backend().pull().await.unwrap_err(), REWRITTEN);
        is_refused(&one.backend().push().await.unwrap_err(), REWRITTEN);
        let stats = one.stats().await.unwrap();
        assert!(stats.details["warnings"][0].as_str().unwrap().contains(REWRITTEN));
        one.close().await.unwrap();
        assert!(!told(&clones).contains("LEAKED"));
    }
    // A person brings the clone to the new history; then all goes on.
    git(&clones.at("one"), &["fetch", "--quiet", clones.at("remote.git").to_str().unwrap(), "main"]);
    git(&clones.at("one"), &["reset", "--quiet", "--hard", clean.trim()]);
    let one = clones.open("one").await;
    one.set_config("c", json!(1)).await.unwrap();
    one.close().await.unwrap();
    assert!(!told(&clones).contains("LEAKED"));
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn a_commit_that_was_taken_back_is_not_sent_again() {
    taken_back(Clones::new()).await;
}

#[tokio::test]
async fn nor_over_a_network() {
    taken_back(Clones::served()).await;
}

async fn taken_back(clones: Clones) {
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.set_config("a", json!("TAKEN BACK")).await.unwrap();
    git(&clones.at("remote.git"), &["update-ref", "refs/heads/main", "main~1"]);
    one.set_config("b", json!(1)).await.unwrap();
    is_refused(&one.backend().push().await.unwrap_err(), REWRITTEN);
    git(&clones.at("remote.git"), &["update-ref", "-d", "refs/heads/main"]);
    is_refused(&one.backend().push().await.unwrap_err(), REWRITTEN);
    one.close().await.unwrap();
    assert_eq!(git(&clones.at("remote.git"), &["for-each-ref"]), "");
}

#[tokio::test]
async fn two_histories_are_not_joined() {
    let clones = Clones::new();
    clones.open("one").await.set_config("a", json!(1)).await.unwrap();
    bare(&clones.at("theirs.git"));
    let mut config = clones.config("other");
    config.remote = Some(clones.at("theirs.git").to_str().unwrap().to_owned());
    Storage::<Git>::open(config.clone()).await.unwrap().set_config("b", json!(1)).await.unwrap();

    let mut astray = clones.config("one");
    astray.remote = config.remote;
    // What was known is of another remote; and what if nothing was?
    for is_known in [true, false] {
        if !is_known {
            git(&clones.at("one"), &["update-ref", "-d", "refs/remotes/gateway-storage/main"]);
        }
        let one = Storage::<Git>::open(astray.clone()).await.unwrap();
        one.set_config(format!("c-{is_known}"), json!(1)).await.unwrap();
        assert_eq!(one.backend().pull().await.unwrap_err().kind(), ErrorKind::Conflict);
        is_refused(&one.backend().push().await.unwrap_err(), "");
        assert_eq!(value(&one, "a").await, json!(1));
        one.close().await.unwrap();
        assert_eq!(git(&clones.at("theirs.git"), &["rev-list", "--count", "main"]), "1\n");
    }
    is_clean(&clones.at("one"));
}

#[tokio::test]
async fn what_is_only_here_is_put_on_what_was_added() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.close().await.unwrap();
    let mut config = clones.config("one");
    (config.pull, config.push) = (GitSync::Manual, GitSync::Manual);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("b", json!(1)).await.unwrap();
    let by_hand = clones.by_hand("config/c.json", "3");
    one.backend().push().await.unwrap();
    assert_eq!(value(&one, "c").await, json!(3));
    assert_eq!(git(&clones.at("one"), &["rev-parse", "HEAD~1"]).trim(), by_hand);
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}
