//! Watches of a Git store: of writes here, of a person's commits, and of those of other clones.

use std::{collections::BTreeSet, fs, path::Path, pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use gateway_storage::{
    ErrorKind, Git, History, Key, Record, Result, Storage,
    git::GitSync,
    history::DocumentKind::{self, Config, Credential},
    revision::Condition,
    watch::{Cursor, Event, WatchOptions},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use super::{git, open, shared::Clones};

const LONG: Duration = Duration::from_secs(60);

struct Watching<'s>(Pin<Box<dyn Stream<Item = Result<Event>> + Send + 's>>);

impl<'s> Watching<'s> {
    /// After its first event.
    async fn begin(storage: &'s Storage<Git>) -> (Self, Cursor) {
        let mut watching = Self::from(storage, None);
        match watching.next().await {
            Event::Resync { cursor } => (watching, cursor),
            event => panic!("{event:?}"),
        }
    }

    fn from(storage: &'s Storage<Git>, from: Option<Cursor>) -> Self {
        let mut options = WatchOptions::default();
        options.from = from;
        Self(Box::pin(storage.watch(options)))
    }

    async fn ended(&mut self) -> Result<Event> {
        timeout(LONG, self.0.next()).await.expect("an event").expect("an event or an error")
    }

    async fn next(&mut self) -> Event {
        self.ended().await.expect("the watch goes on")
    }

    /// Reads events until all of these are told, and asserts that no other is. Returns the last cursor.
    async fn told(&mut self, what: &str, wanted: &[(DocumentKind, &str)]) -> Cursor {
        let wanted: BTreeSet<_> = wanted.iter().map(|(kind, key)| (*kind, (*key).to_owned())).collect();
        let mut missing = wanted.clone();
        loop {
            match self.next().await {
                Event::Changed { kind, key: Some(key), cursor } => {
                    let told = (kind, key.as_str().to_owned());
                    assert!(wanted.contains(&told), "{what}: {told:?} is told");
                    missing.remove(&told);
                    if missing.is_empty() {
                        return cursor;
                    }
                }
                Event::Idle { .. } => {}
                event => panic!("{what}: {event:?}"),
            }
        }
    }

    async fn idle(&mut self) -> Cursor {
        match self.next().await {
            Event::Idle { cursor } => cursor,
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn every_write_tells_its_keys() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path().join("store")).await.unwrap();
    let (mut watching, _) = Watching::begin(&storage).await;
    let keys = ["x", "Y/%"].map(|key| Key::new(key).unwrap());
    let of = |kind: DocumentKind| keys.each_ref().map(|key| (kind, key.as_str()));

    storage.set_credential("A", json!({ "a": 1 })).await.unwrap();
    watching.told("set_credential", &[(Credential, "A")]).await;
    storage.set_config("A", json!(1)).await.unwrap();
    watching.told("set_config", &[(Config, "A")]).await;
    let set = storage.backend().head().unwrap().unwrap();
    storage.delete_credential("A").await.unwrap();
    watching.told("delete_credential", &[(Credential, "A")]).await;
    storage.delete_config("A").await.unwrap();
    watching.told("delete_config", &[(Config, "A")]).await;
    storage.set_credentials(keys.clone().map(|key| (key, json!({})))).await.unwrap().complete().unwrap();
    watching.told("set_credentials", &of(Credential)).await;
    storage.set_configs(keys.clone().map(|key| (key, json!(1)))).await.unwrap().complete().unwrap();
    watching.told("set_configs", &of(Config)).await;
    storage.delete_credentials(&keys).await.unwrap().complete().unwrap();
    watching.told("delete_credentials", &of(Credential)).await;
    let revision = storage.set_config_if("if", json!(1), Condition::Absent).await.unwrap();
    watching.told("set_if", &[(Config, "if")]).await;
    storage.delete_config_if("if", revision).await.unwrap();
    watching.told("delete_if", &[(Config, "if")]).await;
    let record = Record::Config { key: keys[0].clone(), value: json!(7).try_into().unwrap() };
    storage.import(stream::iter([Ok(record)])).await.unwrap().complete().unwrap();
    watching.told("import", &[of(Config)[0]]).await;
    let imported = storage.backend().head().unwrap().unwrap();
    storage.backend().revert(imported).await.unwrap();
    watching.told("revert", &[of(Config)[0]]).await;
    assert_ne!(set, imported);

    // A write that changes nothing makes no commit.
    storage.set_config("x", json!(1)).await.unwrap();
    watching.idle().await;
    storage.clone().close().await.unwrap();
    assert_eq!(watching.ended().await.unwrap_err().kind(), ErrorKind::Closed);
}

/// A reader may have seen what was changed back since.
#[tokio::test]
async fn what_was_changed_back_is_told() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    let (mut watching, cursor) = Watching::begin(&storage).await;
    for _ in 0..3 {
        storage.set_config("a", json!(1)).await.unwrap();
        storage.delete_config("a").await.unwrap();
        for _ in 0..2 {
            watching.told("set, and deleted", &[(Config, "a")]).await;
        }
    }
    let mut since = Watching::from(&storage, Some(cursor));
    since.told("set, and deleted", &[(Config, "a")]).await;
    // A merge that drops what was merged.
    let cursor = watching.idle().await;
    git(&path, &["checkout", "--quiet", "-b", "other"]);
    commit(&path, "config/other.json", "1\n");
    git(&path, &["checkout", "--quiet", "main"]);
    storage.set_config("main", json!(1)).await.unwrap();
    let at_main = watching.told("main", &[(Config, "main")]).await;
    git(&path, &["merge", "--quiet", "--strategy", "ours", "-m", "merge", "other"]);
    storage.health().await.unwrap();
    let mut since = Watching::from(&storage, Some(at_main));
    since.told("what was merged", &[(Config, "other")]).await;
    let mut since = Watching::from(&storage, Some(cursor));
    since.told("all", &[(Config, "other"), (Config, "main")]).await;
}

/// Commits a file in the work tree, as a person does.
fn commit(path: &Path, file: &str, text: &str) {
    fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
    fs::write(path.join(file), text).unwrap();
    git(path, &["add", "."]);
    git(path, &["commit", "--quiet", "-m", "by hand"]);
}

#[tokio::test]
async fn what_a_person_does_in_the_work_tree_is_told_when_it_is_read() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.set_config("b", json!(1)).await.unwrap();
    let (mut watching, _) = Watching::begin(&storage).await;
    commit(&path, "config/a.json", "2\n");
    watching.told("a commit", &[(Config, "a")]).await;
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(2));
    commit(&path, "README.md", "text");
    commit(&path, "credentials/c.json", "{}\n");
    watching.told("a new file", &[(Credential, "c")]).await;

    git(&path, &["reset", "--quiet", "--hard", "HEAD~3"]);
    watching.told("reset --hard", &[(Config, "a"), (Credential, "c")]).await;
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1));
    git(&path, &["commit", "--quiet", "--amend", "-m", "another message"]);
    fs::write(path.join("config/b.json"), "5\n").unwrap();
    git(&path, &["commit", "--quiet", "--amend", "--all", "-m", "another value"]);
    watching.told("commit --amend", &[(Config, "b")]).await;
    // A file that can't be read is not seen, and then it is mended.
    commit(&path, "config/a.json", "{");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    commit(&path, "config/a.json", "9\n");
    watching.told("a mended file", &[(Config, "a")]).await;
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(9));
}

#[tokio::test]
async fn a_cursor_is_a_commit_and_holds_for_good() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    let (mut watching, empty) = Watching::begin(&storage).await;
    storage.set_config("a", json!(1)).await.unwrap();
    let cursor = watching.told("a", &[(Config, "a")]).await;
    assert_eq!(cursor.as_str(), format!("git:{}", storage.backend().head().unwrap().unwrap()));
    drop(watching);
    storage.set_config("b", json!(1)).await.unwrap();
    storage.set_credential("c", json!({})).await.unwrap();
    storage.close().await.unwrap();

    let storage = open(&path).await.unwrap();
    let mut watching = Watching::from(&storage, Some(cursor.clone()));
    watching.told("since", &[(Config, "b"), (Credential, "c")]).await;
    storage.set_config("d", json!(1)).await.unwrap();
    watching.told("later", &[(Config, "d")]).await;
    let mut from_empty = Watching::from(&storage, Some(empty));
    let all = [(Config, "a"), (Config, "b"), (Config, "d"), (Credential, "c")];
    from_empty.told("since the beginning", &all).await;

    // A branch that has lost the cursor's commit, or all that it had.
    let lost = watching.idle().await;
    git(&path, &["reset", "--quiet", "--hard", "HEAD~3"]);
    git(&path, &["commit", "--quiet", "--amend", "-m", "rewritten"]);
    storage.health().await.unwrap();
    commit(&path, "config/e.json", "1\n");
    watching.told("rewritten", &[(Config, "b"), (Config, "d"), (Credential, "c"), (Config, "e")]).await;
    drop((watching, from_empty));
    for lost in [lost, cursor] {
        let mut watching = Watching::from(&storage, Some(lost));
        assert!(matches!(watching.next().await, Event::Resync { .. }), "it is no ancestor");
        storage.set_config("f", json!(fastrand::u32(..))).await.unwrap();
        watching.told("goes on", &[(Config, "f")]).await;
    }

    // A cursor of another store.
    let other = open(base.path().join("other")).await.unwrap();
    let (mut watching, _) = Watching::begin(&other).await;
    other.set_config("x", json!(1)).await.unwrap();
    let foreign = watching.told("x", &[(Config, "x")]).await;
    assert!(matches!(Watching::from(&storage, Some(foreign)).next().await, Event::Resync { .. }));
}

#[tokio::test]
async fn what_other_clones_push_is_told_after_a_fetch() {
    for pull in [GitSync::Interval, GitSync::Write] {
        let clones = Clones::new();
        let one = clones.open("one").await;
        one.set_config("a", json!(1)).await.unwrap();
        let mut options = clones.config("watching").with_interval(Duration::from_millis(300));
        (options.pull, options.push) = (pull, GitSync::Manual);
        let storage = Storage::<Git>::open(options).await.unwrap();
        let (mut watching, _) = Watching::begin(&storage).await;
        one.set_credential("b", json!({})).await.unwrap();
        watching.told("another clone", &[(Credential, "b")]).await;
        storage.get_credential("b").await.expect("it is read once it is told");
        clones.by_hand("config/c.json", "1\n");
        watching.told("a person's push", &[(Config, "c")]).await;
        // Its own commit is then put on top of that of another clone.
        storage.set_config("own", json!(1)).await.unwrap();
        watching.told("own", &[(Config, "own")]).await;
        clones.by_hand("config/d.json", "1\n");
        watching.told("a rebase tells only what it brings", &[(Config, "d")]).await;
        watching.idle().await;

        // What the remote lost does not reach this clone: nothing is up to date any more.
        let person = clones.person();
        git(&person, &["reset", "--quiet", "--hard", "HEAD~1"]);
        commit(&person, "config/e.json", "1\n");
        git(&person, &["push", "--quiet", "--force"]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        while timeout(Duration::from_millis(10), watching.next()).await.is_ok() {}
        timeout(Duration::from_secs(6), watching.next()).await.expect_err("no Idle comes");
        storage.set_config("local", json!(1)).await.unwrap();
        watching.told("what is written here is told", &[(Config, "local")]).await;
        drop(one);
    }
}
