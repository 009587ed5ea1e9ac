//! History and reverts.

use std::time::SystemTime;

use gateway_storage::{
    ErrorKind, Git, History, Key, Record, Storage,
    history::{CommitId, DocumentKind},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{commits, config, git, is_clean, open};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn config_at(on: &Storage<Git>, commit: CommitId, name: &str) -> Result<Value, ErrorKind> {
    match on.backend().value_at(commit, DocumentKind::Config, &key(name)).await {
        Ok(Record::Config { value, .. }) => Ok(value.value().clone()),
        Ok(_) => panic!("another kind of record"),
        Err(error) => Err(error.kind()),
    }
}

#[tokio::test]
async fn a_record_has_a_history() {
    let base = TempDir::new().unwrap();
    let mut config = config(base.path().join("store"));
    config.author_name = "Jo \"J\" O'Neil".into();
    config.author_email = "jo@example.com".into();
    let storage = Storage::<Git>::open(config).await.unwrap();
    let before = SystemTime::now() - std::time::Duration::from_secs(1);
    storage.set_config("A", json!(1)).await.unwrap();
    storage.set_config("other", json!(0)).await.unwrap();
    storage.set_config("A", json!(2)).await.unwrap();
    storage.delete_config("A").await.unwrap();
    storage.set_credential("A", json!({})).await.unwrap();

    let backend = storage.backend();
    let history = backend.history(DocumentKind::Config, &key("A"), 100).await.unwrap();
    assert_eq!(history.iter().map(|commit| commit.is_deleted).collect::<Vec<_>>(), [true, false, false]);
    assert!(
        history.iter().all(|commit| commit.author == "Jo \"J\" O'Neil" && commit.email == "jo@example.com")
    );
    assert!(history.iter().all(|commit| commit.time >= before && commit.time <= SystemTime::now()));
    let wanted = git(backend.path(), &["log", "--format=%H", "--", "config/A~8.json"]);
    assert_eq!(
        history.iter().map(|commit| commit.id.to_string()).collect::<Vec<_>>(),
        wanted.lines().collect::<Vec<_>>()
    );
    assert_eq!(backend.history(DocumentKind::Config, &key("A"), 1).await.unwrap(), history[..1]);

    assert_eq!(config_at(&storage, history[0].id, "A").await, Err(ErrorKind::NotFound));
    assert_eq!(config_at(&storage, history[1].id, "A").await, Ok(json!(2)));
    assert_eq!(config_at(&storage, history[2].id, "A").await, Ok(json!(1)));
    assert_eq!(config_at(&storage, history[1].id, "other").await, Ok(json!(0)));
    for unknown in [CommitId::from([1; 20]), CommitId::new(&[1; 32]).unwrap()] {
        assert_eq!(config_at(&storage, unknown, "A").await, Err(ErrorKind::NotFound));
    }
    let error = backend.history(DocumentKind::Config, &key("never"), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        backend.head().unwrap().unwrap().to_string(),
        git(backend.path(), &["rev-parse", "HEAD"]).trim()
    );
}

#[tokio::test]
async fn a_commit_is_reverted() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    let backend = storage.backend().clone();
    storage.set_config("a", json!(1)).await.unwrap();
    let records: Vec<_> = ["a", "b"]
        .map(|name| Record::Config { key: key(name), value: json!([2]).try_into().unwrap() })
        .to_vec();
    gateway_storage::Exportable::import(&backend, &records).await.unwrap().complete().unwrap();
    let commit = backend.head().unwrap().unwrap();

    let undone = backend.revert(commit).await.unwrap();
    assert_eq!(Some(undone), backend.head().unwrap());
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1));
    assert_eq!(storage.get_config("b").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(git(&path, &["log", "-1", "--format=%s"]).starts_with(&format!("revert {commit}: 2 files")));
    assert_eq!(backend.revert(commit).await.unwrap(), undone, "reverting twice is reverting once");
    assert_eq!(commits(&path), 3);

    // Reverting the revert restores the change.
    backend.revert(undone).await.unwrap();
    assert_eq!(storage.get_config("b").await.unwrap().value(), &json!([2]));
    storage.set_config("b", json!(3)).await.unwrap();
    let error = backend.revert(commit).await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Conflict, Some(&key("b"))));
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!([2]), "all or none");
    let error = backend.revert(CommitId::from([1; 20])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    storage.close().await.unwrap();
    is_clean(&path);
}

/// A commit is about records: the current name of the file does not matter, and later values are not lost.
#[tokio::test]
async fn a_record_whose_file_was_renamed_is_in_conflict() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    storage.set_config("first", json!(1)).await.unwrap();
    let by_hand = |text: Option<&str>| {
        let file = path.join("config/Bob.json");
        text.map_or_else(|| std::fs::remove_file(&file), |text| std::fs::write(&file, text)).unwrap();
        git(&path, &["add", "-A"]);
        git(&path, &["commit", "--quiet", "-m", "by hand"]);
        git(&path, &["rev-parse", "HEAD"]).trim().parse::<CommitId>().unwrap()
    };
    let backend = storage.backend();
    let added = by_hand(Some("1\n"));
    let changed = by_hand(Some("2\n"));
    storage.set_config("Bob", json!(3)).await.unwrap();
    for commit in [added, changed] {
        assert_eq!(backend.revert(commit).await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(storage.get_config("Bob").await.unwrap().value(), &json!(3));
    }
    // The same value under the new name is the value of the commit.
    storage.set_config("Bob", json!(2)).await.unwrap();
    backend.revert(changed).await.unwrap();
    assert_eq!(storage.get_config("Bob").await.unwrap().value(), &json!(1));
    backend.revert(added).await.unwrap();
    assert_eq!(storage.get_config("Bob").await.unwrap_err().kind(), ErrorKind::NotFound);

    by_hand(Some("4\n"));
    let deleted = by_hand(None);
    storage.set_config("Bob", json!(5)).await.unwrap();
    assert_eq!(backend.revert(deleted).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(storage.get_config("Bob").await.unwrap().value(), &json!(5));
    storage.delete_config("Bob").await.unwrap();
    backend.revert(deleted).await.unwrap();
    assert_eq!(storage.get_config("Bob").await.unwrap().value(), &json!(4));
    assert_eq!(git(&path, &["ls-files", "config"]).lines().filter(|file| file.contains("ob")).count(), 1);

    // A commit can add a record under both names.
    storage.delete_config("Bob").await.unwrap();
    std::fs::write(path.join("config/Bob~8.json"), "6\n").unwrap();
    let both = by_hand(Some("7\n"));
    storage.health().await.unwrap();
    assert_eq!(storage.get_config("Bob").await.unwrap().value(), &json!(6));
    backend.revert(both).await.unwrap();
    assert_eq!(storage.get_config("Bob").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(git(&path, &["ls-files", "config"]).trim(), "config/first.json");
    storage.close().await.unwrap();
    is_clean(&path);
}
