//! Data that was removed from the remote's history does not return from a clone.

use std::{fs, time::Duration};

use gateway_storage::{Error, ErrorKind, Git, GitOptions, Storage, git::GitSync};
use serde_json::json;

use super::{
    bare, git, is_clean,
    shared::{Clones, value},
};

fn is_refused(error: &Error, words: &str) {
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Conflict, false));
    assert!(error.to_string().contains(words), "{error}");
}

const REWRITTEN: &str = "the remote's history was rewritten";
const GONE: &str = "the remote does not have the branch";

/// The history of the remote, as text.
fn remote_log(clones: &Clones) -> String {
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
        assert!(!remote_log(&clones).contains("LEAKED"));
    }
    // A person brings the clone to the new history; then writes continue.
    git(&clones.at("one"), &["fetch", "--quiet", clones.at("remote.git").to_str().unwrap(), "main"]);
    git(&clones.at("one"), &["reset", "--quiet", "--hard", clean.trim()]);
    let one = clones.open("one").await;
    one.set_config("c", json!(1)).await.unwrap();
    one.close().await.unwrap();
    assert!(!remote_log(&clones).contains("LEAKED"));
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn a_removed_commit_is_not_sent_again() {
    removed_commit(Clones::new()).await;
}

#[tokio::test]
async fn a_removed_commit_is_not_sent_again_over_a_network() {
    removed_commit(Clones::served()).await;
}

async fn removed_commit(clones: Clones) {
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.set_config("a", json!("TAKEN BACK")).await.unwrap();
    git(&clones.at("remote.git"), &["update-ref", "refs/heads/main", "main~1"]);
    one.set_config("b", json!(1)).await.unwrap();
    is_refused(&one.backend().push().await.unwrap_err(), REWRITTEN);
    git(&clones.at("remote.git"), &["update-ref", "-d", "refs/heads/main"]);
    is_refused(&one.backend().push().await.unwrap_err(), GONE);
    one.close().await.unwrap();
    assert_eq!(git(&clones.at("remote.git"), &["for-each-ref"]), "");
}

#[tokio::test]
async fn commits_that_git_fetched_count_as_known() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.set_config("leak", json!("LEAKED")).await.unwrap();
    one.close().await.unwrap();
    clones.person();
    let remote = clones.at("remote.git");
    git(&remote, &["update-ref", "refs/heads/main", "main~1"]);
    is_kept_out(&clones, "person").await;
    let clean = git(&remote, &["commit-tree", "-p", "main", "-m", "clean", "main^{tree}"]);
    git(&remote, &["update-ref", "refs/heads/main", clean.trim()]);
    is_kept_out(&clones, "person").await;
    // A person has fetched the new history but has not yet moved the clone to it.
    git(&clones.at("person"), &["fetch", "--quiet"]);
    is_kept_out(&clones, "person").await;
    git(&clones.at("person"), &["reset", "--quiet", "--hard", "origin/main"]);
    let store = clones.open("person").await;
    store.set_config("c", json!(1)).await.unwrap();
    store.close().await.unwrap();
    clones.are_in_order(&["person"]);
}

#[tokio::test]
async fn commits_that_git_pulled_count_as_known() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.close().await.unwrap();
    let other = clones.open("other").await;
    other.set_config("leak", json!("LEAKED")).await.unwrap();
    other.close().await.unwrap();
    let remote = clones.at("remote.git");
    git(&clones.at("one"), &["pull", "--quiet", "--ff-only", remote.to_str().unwrap(), "main"]);
    // The remote has again what this store last saw there.
    git(&remote, &["update-ref", "refs/heads/main", "main~1"]);
    is_kept_out(&clones, "one").await;
}

/// Opens a store that was closed a moment ago. A process that another test starts has a copy of its lock
/// between `fork` and `exec`.
async fn reopen(config: &GitOptions) -> Storage<Git> {
    loop {
        match Storage::<Git>::open(config.clone()).await {
            Err(error) if error.kind() == ErrorKind::Busy => {
                tokio::time::sleep(Duration::from_millis(5)).await
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Asserts that no read, write or push restores what the remote has lost.
async fn is_kept_out(clones: &Clones, name: &str) {
    for pull in [GitSync::Interval, GitSync::Manual] {
        let mut config = clones.config(name);
        config.pull = pull;
        reopen(&config).await.close().await.unwrap();
        let store = reopen(&config).await;
        store.set_config(format!("own-{pull:?}"), json!(1)).await.unwrap();
        is_refused(&store.backend().pull().await.unwrap_err(), REWRITTEN);
        is_refused(&store.backend().push().await.unwrap_err(), REWRITTEN);
        store.close().await.unwrap();
        assert!(!remote_log(clones).contains("LEAKED"), "{pull:?}");
    }
}

#[tokio::test]
async fn a_push_contacts_the_remote_even_without_commits() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.set_config("a", json!(2)).await.unwrap();
    one.backend().push().await.unwrap();
    let remote = clones.at("remote.git");
    git(&remote, &["update-ref", "refs/heads/main", "main~1"]);
    is_refused(&one.backend().push().await.unwrap_err(), REWRITTEN);
    git(&remote, &["update-ref", "-d", "refs/heads/main"]);
    is_refused(&one.backend().push().await.unwrap_err(), GONE);
    fs::rename(&remote, clones.at("away")).unwrap();
    assert_eq!(one.backend().push().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_new_remote_needs_a_first_push_by_a_person() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.close().await.unwrap();
    bare(&clones.at("new.git"));
    let mut config = clones.config("one");
    config.remote = Some(clones.at("new.git").to_str().unwrap().to_owned());
    let one = Storage::<Git>::open(config).await.unwrap();
    is_refused(&one.backend().push().await.unwrap_err(), GONE);
    git(&clones.at("one"), &["push", "--quiet", clones.at("new.git").to_str().unwrap(), "main"]);
    one.set_config("b", json!(1)).await.unwrap();
    one.backend().push().await.unwrap();
    one.close().await.unwrap();
    assert_eq!(git(&clones.at("new.git"), &["rev-parse", "main"]), clones.head("one"));
}

#[tokio::test]
async fn unrelated_histories_are_not_joined() {
    let clones = Clones::new();
    clones.open("one").await.set_config("a", json!(1)).await.unwrap();
    bare(&clones.at("theirs.git"));
    let mut config = clones.config("other");
    config.remote = Some(clones.at("theirs.git").to_str().unwrap().to_owned());
    Storage::<Git>::open(config.clone()).await.unwrap().set_config("b", json!(1)).await.unwrap();

    let mut astray = clones.config("one");
    astray.remote = config.remote;
    // The known commits are of another remote; then without any known commits.
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
async fn local_commits_are_rebased_onto_new_ones() {
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
