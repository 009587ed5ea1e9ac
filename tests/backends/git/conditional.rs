//! Conditional writes beside commits by hand.

use std::{fs, path::Path};

use gateway_storage::{
    Error, ErrorKind, Git, Outcome, Result, Storage,
    git::GitSync,
    revision::{
        Condition::{Absent, Unchanged},
        Revision,
    },
};
use serde_json::json;
use tempfile::TempDir;

use super::{
    git, is_clean, open,
    shared::{Clones, value},
};

#[track_caller]
fn is_conflict(error: &Error) {
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotApplied), "{error:?}");
    assert!(!error.is_retryable(), "{error:?}");
    assert_eq!(error.key().unwrap().as_str(), "a");
}

fn blob(path: &Path, file: &str) -> Revision {
    git(path, &["rev-parse", &format!("main:{file}")]).trim().parse().unwrap()
}

#[tokio::test]
async fn a_commit_by_hand_at_the_remote_is_a_conflict() -> Result<()> {
    for clones in [Clones::new(), Clones::served()] {
        let one = clones.open("one").await;
        let first = one.set_config_if("a", json!(1), Absent).await?;
        assert_eq!(first, blob(&clones.at("remote.git"), "config/a.json"));
        // In the last round with the value that the store also writes.
        for by_hand in [2, 3] {
            let (_, before) = one.get_config_with_revision("a").await?;
            clones.by_hand("config/a.json", &format!("{by_hand}\n"));
            is_conflict(&one.set_config_if("a", json!(3), Unchanged(before)).await.unwrap_err());
            // The commit was fetched, so that the caller can decide again.
            let (found, after) = one.get_config_with_revision("a").await?;
            assert_eq!((found.value(), after), (&json!(by_hand), blob(&clones.person(), "config/a.json")));
            one.set_config_if("a", json!([by_hand]), Unchanged(after)).await?;
        }
        let (_, before) = one.get_config_with_revision("a").await?;
        clones.by_hand("config/a.json", "{\"other\": \"spelling\"}");
        is_conflict(&one.delete_config_if("a", before).await.unwrap_err());
        let (_, after) = one.get_config_with_revision("a").await?;
        one.delete_config_if("a", after).await?;
        clones.by_hand("config/a.json", "4");
        is_conflict(&one.set_config_if("a", json!(5), Absent).await.unwrap_err());
        assert_eq!(value(&one, "a").await, json!(4));
        one.close().await?;
        clones.are_in_order(&["one"]);
    }
    Ok(())
}

#[tokio::test]
async fn commits_of_other_records_are_no_conflict() -> Result<()> {
    let clones = Clones::new();
    let one = clones.open("one").await;
    let mut revision = one.set_credential_if("a", json!({ "n": 0 }), Absent).await?;
    for n in 1..4 {
        clones.by_hand("credentials/b.json", &format!("{{\"n\": {n}}}"));
        revision = one.set_credential_if("a", json!({ "n": n }), Unchanged(revision)).await?;
        assert_eq!(one.get_credential("b").await?.fields()["n"], json!(n));
    }
    one.close().await?;
    clones.are_in_order(&["one"]);
    Ok(())
}

#[tokio::test]
async fn a_commit_by_hand_in_the_work_tree_is_a_conflict() -> Result<()> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data");
    let storage = open(&path).await?;
    let first = storage.set_config_if("a", json!(1), Absent).await?;
    fs::write(path.join("config/a.json"), "2").unwrap();
    git(&path, &["commit", "--quiet", "-a", "-m", "by hand"]);
    is_conflict(&storage.set_config_if("a", json!(3), Unchanged(first)).await.unwrap_err());
    let (found, second) = storage.get_config_with_revision("a").await?;
    assert_eq!((found.value(), second), (&json!(2), blob(&path, "config/a.json")));
    storage.set_config_if("a", json!(3), Unchanged(second)).await?;
    storage.close().await?;
    is_clean(&path);
    Ok(())
}

#[tokio::test]
async fn legacy_files_have_revisions() -> Result<()> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data");
    git(dir.path(), &["init", "--quiet", "-b", "main", "data"]);
    fs::create_dir(path.join("config")).unwrap();
    fs::write(path.join("config/Key.json"), "127.0.0.1:8317").unwrap();
    git(&path, &["add", "."]);
    git(&path, &["commit", "--quiet", "-m", "by hand"]);
    let storage = open(&path).await?;
    let (found, first) = storage.get_config_with_revision("Key").await?;
    assert_eq!((found.value(), first), (&json!("127.0.0.1:8317"), blob(&path, "config/Key.json")));
    assert_eq!(storage.set_config_if("Key", json!(1), Absent).await.unwrap_err().kind(), ErrorKind::Conflict);
    let second = storage.set_config_if("Key", json!(1), Unchanged(first)).await?;
    assert_eq!(second, blob(&path, "config/Key~8.json"));
    assert_eq!(git(&path, &["ls-files"]), "config/Key~8.json\n");
    storage.close().await
}

#[tokio::test]
async fn a_conflict_is_final_even_if_the_other_commits_cannot_be_fetched() -> Result<()> {
    let clones = Clones::new();
    let mut config = clones.config("one");
    (config.pull, config.push) = (GitSync::Manual, GitSync::Manual);
    let one = Storage::<Git>::open(config).await?;
    let first = one.set_config_if("a", json!(1), Absent).await?;
    one.backend().push().await?;
    // An earlier commit of this clone that conflicts, too.
    one.set_config("b", json!(1)).await?;
    one.close().await?;
    clones.by_hand("config/b.json", "2");
    clones.by_hand("config/a.json", "2");
    let one = clones.open("one").await;
    let before = clones.head("one");
    is_conflict(&one.set_config_if("a", json!(3), Unchanged(first)).await.unwrap_err());
    is_conflict(&one.delete_config_if("a", first).await.unwrap_err());
    assert_eq!((value(&one, "a").await, clones.head("one")), (json!(1), before));
    one.close().await
}
