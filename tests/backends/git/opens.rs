//! Opening: which repositories are accepted, which are refused, and what stays unchanged.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use gateway_storage::{ConfigStore, Credential, ErrorKind, Git, Key, Outcome, Record, Storage};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{bare, clone_of, commits, config, git, is_clean, open};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn refused(path: &Path) -> (ErrorKind, String) {
    let error = open(path).await.expect_err("the store should be refused");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn missing_and_empty_directories_become_readable_repositories() {
    let base = TempDir::new().unwrap();
    let empty = base.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for path in [empty, base.path().join("missing/below")] {
        let storage = open(&path).await.unwrap();
        storage.set_config("retries", json!({ "b": 1, "a": [] })).await.unwrap();
        storage.set_credential("Alice", json!({ "token": "ya29.secret" })).await.unwrap();
        storage.set_config("retries", json!({ "b": 2, "a": [] })).await.unwrap();
        storage.set_config("retries", json!({ "b": 2, "a": [] })).await.unwrap();
        storage.delete_credential("Alice").await.unwrap();
        storage.close().await.unwrap();

        is_clean(&path);
        assert_eq!(commits(&path), 4, "a write that changes nothing makes no commit");
        let log = git(&path, &["log", "--format=%an <%ae>: %s", "--reverse"]);
        let by = "gateway-storage <gateway-storage@localhost>: ";
        let wanted = [
            "set config/retries.json",
            "set credentials/Alice~8.json",
            "set config/retries.json",
            "delete credentials/Alice~8.json",
        ];
        assert_eq!(log.lines().collect::<Vec<_>>(), wanted.map(|line| format!("{by}{line}")));
        let change = git(&path, &["log", "-p", "-1", "--format=", "HEAD~1"]);
        assert!(change.contains("-  \"b\": 1\n+  \"b\": 2\n"), "{change}");
        let messages = git(&path, &["log", "--format=%B"]);
        assert!(!messages.contains("ya29"));
        assert_eq!(
            fs::read_to_string(path.join("config/retries.json")).unwrap(),
            "{\n  \"a\": [],\n  \"b\": 2\n}\n"
        );
        assert!(!path.join("credentials").exists());
        assert_eq!(mode(&path.join("config/retries.json")), 0o600);
        for private in [path.clone(), path.join(".git"), path.join("config")] {
            assert_eq!(mode(&private), 0o700, "{}", private.display());
        }
    }
}

#[tokio::test]
async fn opening_repeatedly_changes_nothing() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    for start in 0..10 {
        let storage = open(&path).await.unwrap();
        assert_eq!(storage.list_configs().await.unwrap().len(), start);
        storage.set_config(format!("key-{start}"), json!(start)).await.unwrap();
        if start % 2 == 0 {
            storage.close().await.unwrap();
        }
    }
    is_clean(&path);
    assert_eq!(commits(&path), 10);
}

#[tokio::test]
async fn other_files_of_a_repository_are_unchanged() {
    let base = TempDir::new().unwrap();
    let path = base.path();
    git(path, &["init", "--quiet", "-b", "main"]);
    fs::write(path.join("README.md"), "ours\r\n").unwrap();
    fs::create_dir(path.join("credentials")).unwrap();
    fs::write(path.join("credentials/notes.txt"), "").unwrap();
    git(path, &["add", "."]);
    git(path, &["commit", "--quiet", "-m", "first"]);
    // A person's work: staged, modified and untracked.
    fs::write(path.join("staged"), "staged").unwrap();
    git(path, &["add", "staged"]);
    fs::write(path.join("README.md"), "changed").unwrap();
    fs::write(path.join("untracked"), "untracked").unwrap();
    // git would run these.
    for hook in ["pre-commit", "commit-msg", "post-commit", "reference-transaction"] {
        let hook = path.join(".git/hooks").join(hook);
        fs::create_dir_all(hook.parent().unwrap()).unwrap();
        fs::write(&hook, "#!/bin/sh\ntouch hooked\nexit 1\n").unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(path.join(".git/info/attributes"), "*.json ident eol=crlf\n* filter=evil\n*.json -filter\n")
        .unwrap();
    fs::write(path.join(".git/evil"), "[filter \"evil\"]\n\tclean = touch filtered\n").unwrap();

    let storage = open(path).await.unwrap();
    storage.set_credential("alice", json!({ "a": "$Id$" })).await.unwrap();
    storage.close().await.unwrap();
    assert_eq!(git(path, &["show", "HEAD:credentials/alice.json"]), "{\n  \"a\": \"$Id$\"\n}\n");
    fs::remove_file(path.join(".git/info/attributes")).unwrap();
    let status = git(path, &["status", "--porcelain"]);
    assert_eq!(status, " M README.md\nA  staged\n?? untracked\n");
    assert_eq!(fs::read_to_string(path.join("README.md")).unwrap(), "changed");
    assert_eq!(
        git(path, &["show", "--stat", "--format=", "HEAD"]).lines().count(),
        2,
        "one file and the sum"
    );
    assert!(!path.join("hooked").exists() && !path.join("filtered").exists());
    assert!(path.join("credentials/notes.txt").exists());
}

#[tokio::test]
async fn uncommitted_changes_are_refused_and_kept() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.set_config("b", json!(1)).await.unwrap();
    storage.close().await.unwrap();

    let file = path.join("config/a.json");
    fs::write(&file, "2\n").unwrap();
    let (kind, message) = refused(&path).await;
    assert_eq!(kind, ErrorKind::Conflict);
    assert!(message.contains("has changes to 1 of the store's files that are in no commit"), "{message}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "2\n");
    fs::remove_file(&file).unwrap();
    assert_eq!(refused(&path).await.0, ErrorKind::Conflict, "a deletion is a change too");
    git(&path, &["checkout", "--quiet", "."]);

    // While the store is open, the commit is written and the person's file stays.
    let storage = open(&path).await.unwrap();
    fs::write(&file, "3\n").unwrap();
    storage.set_config("a", json!(4)).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "3\n");
    assert_eq!(git(&path, &["show", "HEAD:config/a.json"]), "4\n");
    let stats = storage.stats().await.unwrap();
    assert!(
        stats.details["warnings"][0].as_str().unwrap().starts_with("1 files of the work tree"),
        "{stats:?}"
    );
    storage.close().await.unwrap();
    assert_eq!(git(&path, &["status", "--porcelain"]), " M config/a.json\n");
    git(&path, &["commit", "--quiet", "-am", "by hand"]);
    assert_eq!(open(&path).await.unwrap().get_config("a").await.unwrap().value(), &json!(3));
}

#[tokio::test]
async fn manual_commits_are_seen() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    fs::write(path.join("config/a.json"), "[2]").unwrap();
    fs::write(path.join("config/b.json"), "a bare word").unwrap();
    git(&path, &["add", "."]);
    git(&path, &["commit", "--quiet", "-m", "by hand"]);
    storage.health().await.unwrap();
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!([2]));
    assert_eq!(storage.get_config("b").await.unwrap().value(), &json!("a bare word"));
    storage.set_config("c", json!(3)).await.unwrap();
    assert_eq!(storage.list_configs().await.unwrap().len(), 3);
    assert_eq!(commits(&path), 3);
    is_clean(&path);
}

#[tokio::test]
async fn unsuitable_repositories_are_refused() {
    let base = TempDir::new().unwrap();
    let at = |name: &str| base.path().join(name);
    fs::create_dir(at("others")).unwrap();
    fs::write(at("others/file"), "mine").unwrap();
    bare(&at("bare"));
    git(base.path(), &["init", "--quiet", "-b", "other", "branch"]);
    git(&at("branch"), &["commit", "--quiet", "--allow-empty", "-m", "first"]);
    git(&at("branch"), &["worktree", "add", "--quiet", "-b", "main", "../linked"]);
    symlink(at("branch"), at("link")).unwrap();
    fs::write(at("file"), "mine").unwrap();
    for (name, message) in [
        ("others", "is not empty and not a repository"),
        ("bare", "is not empty and not a repository"),
        ("branch", "is not on the configured branch"),
        ("linked", "is not a directory: a linked work tree, or a submodule"),
        ("link", "is a symbolic link; name the directory itself"),
        ("file", "is not a directory"),
    ] {
        let (kind, found) = refused(&at(name)).await;
        assert_eq!(kind, ErrorKind::InvalidValue);
        assert!(found.contains(message), "{name}: {found}");
    }
    assert_eq!(fs::read_dir(at("others")).unwrap().count(), 1);
    let mut missing = config(at("missing"));
    missing.create = false;
    assert_eq!(Storage::<Git>::open(missing).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!at("missing").exists());
}

/// The store runs no filter, so files for git-crypt would be stored as plain text.
#[tokio::test]
async fn files_with_a_filter_are_refused() {
    for attributes in [
        "*.json filter=git-crypt diff=git-crypt\n",
        "credentials/** filter=git-crypt\n",
        "config/* filter=lfs diff=lfs merge=lfs -text\n",
        "[attr]secret filter=git-crypt\n* secret\n",
    ] {
        for place in [".gitattributes", ".git/info/attributes"] {
            let base = TempDir::new().unwrap();
            git(base.path(), &["init", "--quiet", "-b", "main"]);
            fs::create_dir_all(base.path().join(".git/info")).unwrap();
            fs::write(base.path().join(place), attributes).unwrap();
            let (kind, message) = refused(base.path()).await;
            assert_eq!(kind, ErrorKind::InvalidValue, "{place} {attributes}");
            assert!(message.contains("git-crypt") && message.contains("`-filter`"), "{message}");
        }
    }
}

#[tokio::test]
async fn a_single_file_with_a_filter_is_not_written() {
    let base = TempDir::new().unwrap();
    git(base.path(), &["init", "--quiet", "-b", "main"]);
    fs::write(
        base.path().join(".gitattributes"),
        "*.json filter=git-crypt\n*.md text\ncredentials/* -filter\nconfig/* !filter\n",
    )
    .unwrap();
    let storage = open(base.path()).await.unwrap();
    storage.set_credential("prod-a", json!({ "token": "1" })).await.unwrap();

    // Also while the store is open.
    fs::create_dir_all(base.path().join("credentials")).unwrap();
    fs::write(base.path().join("credentials/.gitattributes"), "prod-* filter=git-crypt\n").unwrap();
    let fields = Credential::try_from(json!({ "token": "2" })).unwrap();
    let both = ["prod-a", "test-a"].map(|id| (Key::new(id).unwrap(), fields.clone()));
    let single = storage.set_credential("prod-a", json!({ "token": "2" })).await.unwrap_err();
    let batch = storage.set_credentials(&both).await.map(drop).unwrap_err();
    for error in [single, batch] {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::InvalidValue, Outcome::NotApplied));
    }
    assert_eq!(storage.get_credential("prod-a").await.unwrap().get("token"), Some(&json!("1")));
    storage.set_credential("test-a", json!({ "token": "2" })).await.unwrap();
    // An existing file can be deleted.
    storage.delete_credential("prod-a").await.unwrap();
    storage.close().await.unwrap();
    assert_eq!(commits(base.path()), 3);
}

#[tokio::test]
async fn paths_for_a_shell_to_expand_are_refused() {
    for path in ["~/x", "$HOME/x"] {
        let (kind, message) = refused(Path::new(path)).await;
        assert!(kind == ErrorKind::InvalidValue && message.contains("no shell has replaced"), "{message}");
    }
}

#[tokio::test]
async fn one_process_at_a_time() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    assert_eq!(refused(&path).await.0, ErrorKind::Busy);
    storage.close().await.unwrap();
    open(&path).await.unwrap();
}

#[tokio::test]
async fn no_symbolic_link_is_followed() {
    let base = TempDir::new().unwrap();
    let (path, outside) = (base.path().join("store"), base.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim.json"), "victim").unwrap();
    let storage = open(&path).await.unwrap();
    symlink(&outside, path.join("config")).unwrap();
    fs::create_dir(path.join("credentials")).unwrap();
    symlink(outside.join("victim.json"), path.join("credentials/a.json")).unwrap();
    storage.set_config("victim", json!(1)).await.unwrap();
    storage.set_credential("a", json!({})).await.unwrap();
    storage.delete_config("victim").await.unwrap();
    assert_eq!(fs::read_to_string(outside.join("victim.json")).unwrap(), "victim");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(storage.get_credential("a").await.unwrap(), Credential::try_from(json!({})).unwrap());
}

#[tokio::test]
async fn a_committed_link_is_not_a_record() {
    let base = TempDir::new().unwrap();
    let (path, victim) = (base.path().join("store"), base.path().join("victim"));
    fs::write(&victim, "victim").unwrap();
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.close().await.unwrap();
    symlink(&victim, path.join("config/p.json")).unwrap();
    git(&path, &["add", "."]);
    git(&path, &["commit", "--quiet", "-m", "by hand"]);
    for start in 0..3 {
        let storage = open(&path).await.unwrap();
        assert_eq!(storage.list_configs().await.unwrap().len(), if start == 0 { 1 } else { 2 });
        storage.set_config("p", json!(start)).await.unwrap();
        storage.close().await.unwrap();
        is_clean(&path);
    }
    assert_eq!(fs::read_to_string(path.join("config/p.json")).unwrap(), "2\n");
    assert_eq!(fs::read_to_string(victim).unwrap(), "victim");
}

/// A person checks out another branch while the store is open.
#[tokio::test]
async fn another_checked_out_branch_is_unchanged() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    git(&path, &["checkout", "--quiet", "-b", "other"]);
    storage.set_config("a", json!(2)).await.unwrap();
    storage.set_config("b", json!(2)).await.unwrap();
    assert_eq!(git(&path, &["status", "--porcelain"]), "");
    assert_eq!(git(&path, &["show", "main:config/b.json"]), "2\n");
    let stats = storage.stats().await.unwrap();
    let warning = stats.details["warnings"][0].as_str().unwrap();
    assert!(warning.contains("is not checked out"), "{warning}");
    fs::write(path.join("mine"), "mine").unwrap();
    git(&path, &["add", "."]);
    git(&path, &["commit", "--quiet", "-m", "mine"]);
    assert_eq!(git(&path, &["show", "--stat", "--format=", "HEAD"]).lines().count(), 2);
    git(&path, &["checkout", "--quiet", "main"]);
    storage.set_config("c", json!(3)).await.unwrap();
    assert_eq!(storage.stats().await.unwrap().details["warnings"], json!([]));
    storage.close().await.unwrap();
    is_clean(&path);
    assert_eq!(open(&path).await.unwrap().list_configs().await.unwrap().len(), 3);
}

#[tokio::test]
async fn no_key_reaches_the_repository_itself() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap();
    let before = fs::read_to_string(path.join(".git/config")).unwrap();
    for key in [".git/config", "../.git/config", ".git", "..", "../../outside", "git~1", "a/../../b"] {
        storage.set_config(key, json!("evil")).await.unwrap();
    }
    storage.close().await.unwrap();
    assert_eq!(fs::read_to_string(path.join(".git/config")).unwrap(), before);
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    is_clean(&path);
}

#[tokio::test]
async fn only_stale_locks_of_the_store_are_removed() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    open(&path).await.unwrap().set_config("a", json!(1)).await.unwrap();

    // No store was writing, so the lock belongs to another program.
    fs::write(path.join(".git/index.lock"), "").unwrap();
    let storage = open(&path).await.unwrap();
    storage.set_config("a", json!(2)).await.unwrap();
    assert!(path.join(".git/index.lock").exists());
    let stats = storage.stats().await.unwrap();
    assert_eq!(stats.details["warnings"].as_array().unwrap().len(), 1);
    fs::write(path.join(".git/refs/heads/main.lock"), "").unwrap();
    let error = storage.set_config("a", json!(3)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(2));
    fs::remove_file(path.join(".git/refs/heads/main.lock")).unwrap();
    fs::remove_file(path.join(".git/index.lock")).unwrap();
    storage.set_config("b", json!(3)).await.unwrap();
    storage.close().await.unwrap();
    is_clean(&path);

    // A store was killed while it wrote and fetched.
    let locks =
        ["index.lock", "refs/heads/main.lock", "HEAD.lock", "shallow.lock", "objects/pack/pack_git2_0a1b2c"];
    let tracking = "refs/remotes/gateway-storage";
    fs::create_dir_all(path.join(".git").join(tracking)).unwrap();
    let tracking = format!("{tracking}/main.lock");
    for left in ["gateway-storage/writing", "gateway-storage/fetching", &tracking].into_iter().chain(locks) {
        fs::write(path.join(".git").join(left), "").unwrap();
    }
    let storage = open(&path).await.unwrap();
    storage.set_config("c", json!(4)).await.unwrap();
    for lock in locks.into_iter().chain([&*tracking]) {
        assert!(!path.join(".git").join(lock).exists(), "{lock}");
    }
    storage.close().await.unwrap();
    is_clean(&path);
}

#[tokio::test]
async fn ten_thousand_credentials_are_one_commit() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap().with_deadline(std::time::Duration::from_secs(120));
    let items: Vec<(Key, Credential)> = (0..10_000)
        .map(|n| {
            let fields = json!({ "access_token": format!("ya29.{n:0>200}"), "refresh_token": "x".repeat(300), "n": n });
            (Key::new(&format!("account-{n}@example.com")).unwrap(), fields.try_into().unwrap())
        })
        .collect();
    let begun = std::time::Instant::now();
    assert_eq!(storage.set_credentials(&items).await.unwrap().succeeded, 10_000);
    println!("a batch of 10,000 credentials took {:?}", begun.elapsed());
    assert_eq!(commits(&path), 1);
    assert!(
        git(&path, &["log", "-1", "--format=%B"])
            .starts_with("set credentials: 10000 files\n\nset credentials/")
    );
    let loose = git(&path, &["count-objects"]);
    assert!(loose.starts_with("0 objects"), "they are in one pack: {loose}");
    let begun = std::time::Instant::now();
    storage.set_credential("account-1@example.com", json!({})).await.unwrap();
    println!("one among 10,000 took {:?}", begun.elapsed());
    storage.close().await.unwrap();
    is_clean(&path);
    let begun = std::time::Instant::now();
    let storage = open(&path).await.unwrap();
    println!("opening 10,000 took {:?}", begun.elapsed());
    assert_eq!(storage.list_credentials().await.unwrap().len(), 10_000);
}

#[tokio::test]
async fn ten_thousand_records_that_are_imported_are_one_commit() {
    let base = TempDir::new().unwrap();
    let path = base.path().join("store");
    let storage = open(&path).await.unwrap().with_deadline(std::time::Duration::from_secs(120));
    let record = |n: u32| match n % 2 {
        0 => Record::Credential {
            id: Key::new(&format!("account-{n}")).unwrap(),
            credential: Credential::try_from(json!({ "n": n })).unwrap(),
        },
        _ => Record::Config {
            key: Key::new(&format!("key-{n}")).unwrap(),
            value: json!(n).try_into().unwrap(),
        },
    };
    let records: Vec<Record> = (0..10_000).map(record).collect();
    let report = gateway_storage::Exportable::import(storage.backend(), &records).await.unwrap();
    assert_eq!((report.succeeded, commits(&path)), (10_000, 1));
    assert!(git(&path, &["count-objects"]).starts_with("0 objects"), "they are in one pack");
    // Importing the same again changes nothing.
    let report = gateway_storage::Exportable::import(storage.backend(), &records).await.unwrap();
    assert_eq!((report.succeeded, commits(&path)), (10_000, 1));
    storage.close().await.unwrap();
    is_clean(&path);
    let storage = open(&path).await.unwrap();
    assert_eq!(storage.list_credentials().await.unwrap().len(), 5000);
    assert_eq!(storage.list_configs().await.unwrap().len(), 5000);
}

#[tokio::test]
async fn counters_are_not_imported() {
    let base = TempDir::new().unwrap();
    let storage = open(base.path().join("store")).await.unwrap();
    let key = Key::new("a").unwrap();
    let records = [
        Record::Usage { key: key.clone(), field: key.clone(), count: 1 },
        Record::Config { key: key.clone(), value: json!(1).try_into().unwrap() },
    ];
    let report = gateway_storage::Exportable::import(storage.backend(), &records).await.unwrap();
    assert_eq!((report.succeeded, report.failures.len()), (1, 1));
    assert_eq!(report.failures[0].error.kind(), ErrorKind::Unsupported);
    assert_eq!(storage.get_config("a").await.unwrap().value(), &json!(1));
}

/// Legacy data: plain names, an unquoted string, another branch.
#[tokio::test]
async fn a_repository_with_legacy_data_is_opened() {
    let base = TempDir::new().unwrap();
    let path = base.path();
    git(path, &["init", "--quiet", "-b", "master"]);
    for (file, text) in [
        (
            "credentials/account-001.json",
            "{\n  \"access_token\": \"at-1\",\n  \"scopes\": [\n    \"openid\"\n  ]\n}\n",
        ),
        ("credentials/Team-001.json", "{\n  \"ID\": \"Team-001\",\n  \"HealthScore\": 0.483\n}\n"),
        ("config/assembly_plan:nightly.json", "{\n  \"version\": 2\n}"),
        ("config/greeting.json", "plain string, 中文"),
        ("config/limit.json", "9007199254740991\n"),
        ("config/empty_list.json", "[]\n"),
    ] {
        fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs::write(path.join(file), text).unwrap();
        git(path, &["add", "."]);
        git(path, &["commit", "--quiet", "-m", &format!("Update {file}")]);
    }
    assert_eq!(refused(path).await.0, ErrorKind::InvalidValue, "its branch is `master`");
    let mut config = config(path);
    config.branch = "master".into();
    let storage = Storage::<Git>::open(config).await.unwrap();
    let read = async |key: &str| storage.get_config(key).await.unwrap().value().clone();
    assert_eq!(read("greeting").await, json!("plain string, 中文"));
    assert_eq!(read("assembly_plan:nightly").await, json!({ "version": 2 }));
    assert_eq!(read("limit").await, json!(9_007_199_254_740_991_u64));
    assert_eq!(storage.get_credential("Team-001").await.unwrap().get("HealthScore"), Some(&json!(0.483)));

    storage.set_config("assembly_plan:nightly", json!(3)).await.unwrap();
    storage.delete_credential("Team-001").await.unwrap();
    assert_eq!(storage.list_credentials().await.unwrap().len(), 1);
    let shown = git(path, &["show", "--format=", "--no-renames", "--name-status", "HEAD~1"]);
    assert_eq!(shown, "A\tconfig/assembly_plan%3Anightly.json\nD\tconfig/assembly_plan:nightly.json\n");
    storage.close().await.unwrap();
    is_clean(path);
}

#[tokio::test]
async fn a_damaged_record_is_refused() {
    let base = TempDir::new().unwrap();
    let path = base.path();
    git(path, &["init", "--quiet", "-b", "main"]);
    fs::create_dir(path.join("config")).unwrap();
    fs::write(path.join("config/a.json"), "{\"secret\": ").unwrap();
    git(path, &["add", "."]);
    git(path, &["commit", "--quiet", "-m", "first"]);
    let error = open(path).await.unwrap_err();
    assert_eq!((error.kind(), error.key().unwrap().as_str()), (ErrorKind::Corrupt, "a"));
    assert!(!format!("{error:?}").contains("secret"));
}

#[tokio::test]
async fn a_fresh_clone_an_empty_remote_and_an_empty_directory() {
    let base = TempDir::new().unwrap();
    let at = |name: &str| base.path().join(name);
    bare(&at("remote.git"));
    // An empty remote and a missing directory.
    let first = Storage::<Git>::open(clone_of(&at("remote.git"), at("first"))).await.unwrap();
    first.set_config("a", json!(1)).await.unwrap();
    first.close().await.unwrap();
    // A clone by git, of a remote with commits.
    git(base.path(), &["clone", "--quiet", "remote.git", "second"]);
    let second = Storage::<Git>::open(clone_of(&at("remote.git"), at("second"))).await.unwrap();
    assert_eq!(second.get_config("a").await.unwrap().value(), &json!(1));
    second.set_config("b", json!(2)).await.unwrap();
    second.close().await.unwrap();
    // An empty directory, and a remote with commits.
    fs::create_dir(at("third")).unwrap();
    let third = Storage::<Git>::open(clone_of(&at("remote.git"), at("third"))).await.unwrap();
    let configs: Vec<Value> = ConfigStore::list_configs(third.backend())
        .await
        .unwrap()
        .values()
        .map(|value| value.value().clone())
        .collect();
    assert_eq!(configs, [json!(1), json!(2)]);
    third.close().await.unwrap();
    // A clone by git, of an empty remote.
    bare(&at("empty.git"));
    git(base.path(), &["clone", "--quiet", "empty.git", "fourth"]);
    let fourth = Storage::<Git>::open(clone_of(&at("empty.git"), at("fourth"))).await.unwrap();
    fourth.set_config("a", json!(1)).await.unwrap();
    fourth.close().await.unwrap();
    for name in ["first", "second", "third", "fourth", "remote.git", "empty.git"] {
        git(&at(name), &["fsck", "--strict"]);
    }
    for name in ["first", "second", "third", "fourth"] {
        is_clean(&at(name));
    }
    assert_eq!(git(&at("remote.git"), &["rev-list", "--count", "main"]), "2\n");
}
