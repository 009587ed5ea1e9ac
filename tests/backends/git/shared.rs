//! Clones of one remote, one after another and concurrently.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use gateway_storage::{ErrorKind, Git, GitOptions, Key, Outcome, Storage, git::GitSync};
use serde_json::json;
use tempfile::TempDir;

use super::{
    bare, clone_of, commits,
    daemon::{Daemon, Relay},
    git, is_clean,
};

pub(crate) struct Clones {
    /// None: all clones use the remote's directory.
    daemon: Option<Daemon>,
    base: TempDir,
}

impl Clones {
    pub(crate) fn new() -> Self {
        let base = TempDir::new().unwrap();
        bare(&base.path().join("remote.git"));
        Self { daemon: None, base }
    }

    /// A relay in front of the remote.
    pub(crate) fn relay(&self) -> Relay {
        Relay::start(self.daemon.as_ref().unwrap())
    }

    /// Installs a hook that the remote runs before it accepts commits.
    pub(crate) fn hook(&self, script: &str) -> PathBuf {
        let hook = self.at("remote.git/hooks/pre-receive");
        fs::create_dir_all(hook.parent().unwrap()).unwrap();
        fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        hook
    }

    /// The number of commits at the remote.
    pub(crate) fn there(&self) -> usize {
        git(&self.at("remote.git"), &["rev-list", "--count", "main"]).trim().parse().unwrap()
    }

    /// Clones that use a network.
    pub(crate) fn served() -> Self {
        let clones = Self::new();
        Self { daemon: Some(Daemon::start(clones.base.path())), ..clones }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    pub(crate) fn config(&self, name: &str) -> GitOptions {
        let mut config = clone_of(&self.at("remote.git"), self.at(name));
        if let Some(daemon) = &self.daemon {
            config.remote = Some(daemon.url("remote.git"));
        }
        config
    }

    pub(crate) async fn open(&self, name: &str) -> Storage<Git> {
        Storage::open(self.config(name)).await.unwrap()
    }

    pub(crate) fn head(&self, name: &str) -> String {
        git(&self.at(name), &["rev-parse", "main"])
    }

    /// A person's clone, by git.
    pub(crate) fn person(&self) -> PathBuf {
        let person = self.at("person");
        if person.exists() {
            git(&person, &["pull", "--quiet"]);
        } else {
            git(self.base.path(), &["clone", "--quiet", "remote.git", "person"]);
        }
        person
    }

    /// Pushes a person's commit to the remote and returns its id.
    pub(crate) fn by_hand(&self, file: &str, text: &str) -> String {
        let person = self.person();
        let path = person.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        git(&person, &["add", "."]);
        git(&person, &["commit", "--quiet", "-m", "by hand"]);
        git(&person, &["push", "--quiet"]);
        git(&person, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub(crate) fn are_in_order(&self, names: &[&str]) {
        for name in names {
            is_clean(&self.at(name));
            assert_eq!(self.head(name), self.head("remote.git"), "{name}");
        }
        git(&self.at("remote.git"), &["fsck", "--strict"]);
    }
}

pub(crate) async fn value(on: &Storage<Git>, key: &str) -> serde_json::Value {
    on.get_config(key).await.unwrap().value().clone()
}

#[tokio::test]
async fn one_after_another_through_a_directory() {
    one_after_another(Clones::new()).await;
}

#[tokio::test]
async fn one_after_another_over_a_network() {
    one_after_another(Clones::served()).await;
}

async fn one_after_another(clones: Clones) {
    let (one, other) = (clones.open("one").await, clones.open("other").await);
    for step in 0..5 {
        one.set_config(format!("one-{step}"), json!(step)).await.unwrap();
        // This clone has not fetched that commit, so its own is rebased onto it.
        other.set_config(format!("other-{step}"), json!(step)).await.unwrap();
        assert_eq!(value(&other, &format!("one-{step}")).await, json!(step));
    }
    one.backend().pull().await.unwrap();
    assert_eq!(one.list_configs().await.unwrap(), other.list_configs().await.unwrap());
    assert_eq!(commits(&clones.at("one")), 10);
    for storage in [one, other] {
        storage.close().await.unwrap();
    }
    clones.are_in_order(&["one", "other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrently_through_a_directory() {
    concurrently(Clones::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrently_over_a_network() {
    concurrently(Clones::served()).await;
}

async fn concurrently(clones: Clones) {
    let names = ["one", "other", "third"];
    let mut writers = Vec::new();
    for name in names {
        let mut config = clones.config(name);
        config.deadline = Duration::from_secs(120);
        let storage = Storage::<Git>::open(config).await.unwrap();
        writers.push(tokio::spawn(async move {
            for step in 0..15 {
                storage.set_config(format!("{name}-{step}"), json!(step)).await.unwrap();
            }
            storage
        }));
    }
    let mut opened = Vec::new();
    for writer in writers {
        opened.push(writer.await.unwrap());
    }
    for storage in &opened {
        storage.backend().pull().await.unwrap();
        assert_eq!(storage.list_configs().await.unwrap().len(), 45, "no write is lost");
    }
    for storage in opened {
        storage.close().await.unwrap();
    }
    assert_eq!(commits(&clones.at("remote.git")), 45);
    clones.are_in_order(&names);
}

#[tokio::test]
async fn a_write_fetches_first_if_configured() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    let mut config = clones.config("other");
    config.pull = GitSync::Write;
    let other = Storage::<Git>::open(config).await.unwrap();
    for step in 0..3 {
        // The same key one after another: no conflict, because each clone fetches first.
        one.backend().pull().await.unwrap();
        one.set_config("Key", json!([step])).await.unwrap();
        other.set_config("Key", json!(step)).await.unwrap();
    }
    one.backend().pull().await.unwrap();
    assert_eq!(value(&one, "Key").await, json!(2));
    for storage in [one, other] {
        storage.close().await.unwrap();
    }
    clones.are_in_order(&["one", "other"]);
}

#[tokio::test]
async fn commits_of_others_are_fetched_in_the_background() {
    let clones = Clones::served();
    let mut config = clones.config("other");
    config.interval = Duration::from_millis(50);
    let other = Storage::<Git>::open(config).await.unwrap();
    let one = clones.open("one").await;
    for step in 0..3 {
        one.set_config("a", json!(step)).await.unwrap();
        let mut waited = 0;
        while other.get_config("a").await.ok().is_none_or(|found| found.value() != &json!(step)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            waited += 1;
            assert!(waited < 1000, "it never comes: {:?}", other.stats().await.unwrap());
        }
    }
    for storage in [one, other] {
        storage.close().await.unwrap();
    }
    clones.are_in_order(&["one", "other"]);
}

#[tokio::test]
async fn the_same_record_on_both_sides_is_a_conflict() {
    let clones = Clones::new();
    let (one, other) = (clones.open("one").await, clones.open("other").await);
    one.set_config("Key", json!(1)).await.unwrap();
    other.backend().pull().await.unwrap();
    one.set_config("Key", json!(2)).await.unwrap();
    let theirs = clones.head("one").trim().to_owned();
    let before = clones.head("other");

    let error = other.set_config("Key", json!(3)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied));
    assert_eq!(error.key().unwrap().as_str(), "Key");
    let message = error.to_string();
    let own = message.split(' ').nth(1).unwrap();
    assert!(message.contains(&theirs) && own != theirs, "{message}");
    assert_eq!(git(&clones.at("other"), &["show", &format!("{own}:config/Key~8.json")]), "3\n");
    assert!(!message.contains("Key"));
    // The local store has not changed.
    assert_eq!(clones.head("other"), before);
    assert_eq!(value(&other, "Key").await, json!(1));
    is_clean(&clones.at("other"));

    other.backend().pull().await.unwrap();
    assert_eq!(value(&other, "Key").await, json!(2));
    other.set_config("Key", json!(3)).await.unwrap();
    // The same change on both sides is not a conflict.
    one.set_config("Key", json!(3)).await.unwrap();
    for storage in [one, other] {
        storage.backend().pull().await.unwrap();
        storage.close().await.unwrap();
    }
    clones.are_in_order(&["one", "other"]);
}

#[tokio::test]
async fn offline_writes_are_kept_and_sent_later() {
    let clones = Clones::new();
    let mut config = clones.config("one");
    config.interval = Duration::from_millis(100);
    let one = Storage::<Git>::open(config).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    let other = clones.open("other").await;

    fs::rename(clones.at("remote.git"), clones.at("away")).unwrap();
    one.set_config("b", json!(2)).await.unwrap();
    one.set_config("c", json!(3)).await.unwrap();
    let stats = one.stats().await.unwrap();
    assert_eq!((&stats.details["ahead"], &stats.details["behind"]), (&json!(2), &json!(0)));
    assert!(
        stats.details["warnings"][0].as_str().unwrap().contains("the remote can't be reached"),
        "{stats:?}"
    );
    assert_eq!(one.backend().push().await.unwrap_err().kind(), ErrorKind::Unavailable);
    fs::rename(clones.at("away"), clones.at("remote.git")).unwrap();
    other.set_config("d", json!(4)).await.unwrap();

    let mut waited = 0;
    while one.stats().await.unwrap().details["ahead"] != json!(0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        waited += 1;
        assert!(waited < 1000, "it is never sent: {:?}", one.stats().await.unwrap());
    }
    assert_eq!(value(&one, "d").await, json!(4));
    other.backend().pull().await.unwrap();
    assert_eq!(other.list_configs().await.unwrap().len(), 4);
    for storage in [one, other] {
        storage.close().await.unwrap();
    }
    clones.are_in_order(&["one", "other"]);
}

#[tokio::test]
async fn a_conflict_of_offline_writes_stays_until_a_person_resolves_it() {
    let clones = Clones::new();
    let mut config = clones.config("one");
    (config.pull, config.push) = (GitSync::Manual, GitSync::Manual);
    let one = Storage::<Git>::open(config.clone()).await.unwrap();
    one.set_config("a", json!(1)).await.unwrap();
    one.backend().push().await.unwrap();
    let other = clones.open("other").await;
    one.set_config("b", json!(1)).await.unwrap();
    other.set_config("b", json!(2)).await.unwrap();
    let before = clones.head("one");
    for error in [one.backend().pull().await, one.backend().push().await] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Conflict);
    }
    assert_eq!(clones.head("one"), before);
    assert_eq!(value(&one, "b").await, json!(1));
    one.set_config("c", json!(1)).await.unwrap();
    let stats = one.stats().await.unwrap();
    assert_eq!((&stats.details["ahead"], &stats.details["behind"]), (&json!(2), &json!(1)));
    one.set_config("b", json!(2)).await.unwrap();
    one.backend().push().await.unwrap();
    other.backend().pull().await.unwrap();
    assert_eq!(other.list_configs().await.unwrap().len(), 3);
    for storage in [one, other] {
        storage.close().await.unwrap();
    }
    clones.are_in_order(&["one", "other"]);
}

#[tokio::test]
async fn other_files_are_fetched_too() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    clones.by_hand("docs/README.md", "text");
    clones.by_hand("config/b.json", "{}");
    one.set_config("c", json!(1)).await.unwrap();
    assert_eq!(value(&one, "b").await, json!({}));
    assert_eq!(fs::read_to_string(clones.at("one").join("docs/README.md")).unwrap(), "text");
    one.close().await.unwrap();
    clones.are_in_order(&["one"]);
}

#[tokio::test]
async fn a_damaged_record_of_others_is_not_fetched() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    clones.by_hand("config/a.json", "{ broken");
    let before = clones.head("one");
    let error = one.backend().pull().await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(&Key::new("a").unwrap())));
    assert_eq!(clones.head("one"), before);
    assert_eq!(value(&one, "a").await, json!(1));
}

#[tokio::test]
async fn a_missing_remote_is_unavailable_unless_there_is_a_clone() {
    let clones = Clones::new();
    clones.open("one").await.set_config("a", json!(1)).await.unwrap();
    fs::remove_dir_all(clones.at("remote.git")).unwrap();
    assert_eq!(value(&clones.open("one").await, "a").await, json!(1));
    let error = Storage::<Git>::open(clones.config("new")).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    assert!(!clones.at("new").exists(), "an empty store would look like a clone");
    let alone = clones.open("one").await;
    alone.close().await.unwrap();
    let mut config = clones.config("one");
    config.remote = None;
    let error = Storage::<Git>::open(config).await.unwrap().backend().pull().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
}
