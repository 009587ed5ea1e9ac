//! Mounted directories: of another user, with entries of the platform, or read-only.

use std::{
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    time::Duration,
};

use super::*;

/// A copy of the program that every user can run.
fn program(place: &Place) -> PathBuf {
    let program = place.dir.path().join("storage");
    copy_command(&program);
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Like a Kubernetes volume for the group of a pod (`fsGroup`). Only root can create one of another user;
/// without root the volume belongs to this user, with the same modes.
#[test]
fn a_volume_of_another_user_and_our_group() {
    let place = Place::new();
    let program = program(&place);
    let run = |volume: &Path, line: &[&str]| {
        let mut command = Command::new(&program);
        command.args(line).env("STORAGE_URL", format!("file:{}", volume.display()));
        if is_root() {
            command.uid(65534).gid(4242);
        }
        ended(command.output().unwrap())
    };
    let volume = |name: &str, mode: u32| {
        let volume = place.dir.path().join(name);
        fs::create_dir(&volume).unwrap();
        if is_root() {
            chown(&volume, Some(0), Some(4242)).unwrap();
        }
        set_mode(&volume, mode);
        volume
    };
    let ours = volume("ours", 0o2775);
    let set = run(&ours, &["config", "set", "a", "1"]);
    assert_eq!(set.code, Some(0), "{}", set.err);
    assert_eq!(run(&ours, &["config", "get", "a"]).out, "1\n");
    let store = ours.join("store.redb");
    assert_eq!(fs::metadata(&store).unwrap().mode() & 0o777, 0o600);
    if is_root() {
        // The next pod runs as another user, and the files were given to the group.
        chown(&store, Some(0), Some(4242)).unwrap();
        set_mode(&store, 0o660);
        assert_eq!(run(&ours, &["config", "get", "a"]).out, "1\n");
        assert_eq!(run(&ours, &["config", "set", "a", "2"]).code, Some(0));
        set_mode(&store, 0o666);
        let open = run(&ours, &["config", "set", "a", "3"]);
        assert_eq!(open.code, Some(5));
        assert!(open.err.contains("has the mode 666, so other users can read it"), "{}", open.err);

        let shared = volume("shared", 0o2777);
        let refused = run(&shared, &["config", "set", "a", "1"]);
        assert_eq!(refused.code, Some(5));
        assert!(refused.err.contains("other users can write to it"), "{}", refused.err);
        assert!(refused.err.contains("name a new directory in it"), "{}", refused.err);
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0, "nothing is left behind");
        assert_eq!(run(&shared.join("store"), &["config", "set", "a", "1"]).code, Some(0));
    }
}

#[test]
fn entries_of_a_volume_are_ignored() {
    let place = Place::new();
    for name in ["lost+found", ".snapshot", ".Trash-1000"] {
        fs::create_dir_all(place.path().join(name)).unwrap();
    }
    place.ok(&["config", "set", "a", "1"]);
    assert_eq!(place.ok(&["config", "get", "a"]), "1\n");
    assert!(place.path().join("lost+found").is_dir());
}

/// Runs as another user if this is root, because permissions do not apply to root.
#[test]
fn a_read_only_store_is_read() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    place.ok(&["credential", "set", "alice", "{}"]);
    let program = program(&place);
    let store = place.path().join("store.redb");
    set_mode(&store, 0o444);
    set_mode(&place.path(), 0o555);
    let before = fs::read(&store).unwrap();
    let run = |line: &[&str]| {
        let mut command = Command::new(&program);
        command.args(line).env("STORAGE_URL", place.url());
        if is_root() {
            command.uid(65534).gid(65534);
        }
        ended(command.output().unwrap())
    };
    for line in [
        ["ping"].as_slice(),
        &["stats"],
        &["doctor"],
        &["credential", "list"],
        &["config", "get", "a"],
        &["usage", "list"],
        &["plan", "audit"],
        &["export", "-"],
        &["copy", &place.url(), "memory:", "--verify"],
    ] {
        let ended = run(line);
        assert_eq!(ended.code, Some(0), "{line:?}: {}", ended.err);
    }
    for line in [["config", "set", "a", "2"].as_slice(), &["credential", "delete", "alice"]] {
        let refused = run(line);
        assert_eq!(refused.code, Some(5), "{}", refused.err);
        assert!(refused.err.contains("Permission denied"), "{}", refused.err);
    }
    let url = format!("{}?read_only=true", place.url());
    let refused = run(&["--url", &url, "config", "set", "a", "2"]);
    assert!(refused.err.contains("the store was opened read-only"), "{}", refused.err);
    assert_eq!(fs::read(&store).unwrap(), before);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "the store and its reserve");
    // So that the test can remove it.
    set_mode(&place.path(), 0o755);
}

#[tokio::test]
async fn opening_can_wait_for_another_process() {
    let place = Place::new();
    let held = Storage::<File>::open(format!("{}?shared=exclusive", place.url())).await.unwrap();
    let url = |wait: &str| format!("{}?wait={wait}", place.url());
    let refused = place.fails(5, &["--url", &url("20ms"), "config", "list"]);
    assert!(refused.contains("is already open"), "{refused}");
    assert!(refused.contains("wait for it"), "{refused}");
    let waiting = place.command(&["--url", &url("60s"), "config", "set", "a", "1"]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    held.close().await.unwrap();
    assert_eq!(ended(waiting.wait_with_output().unwrap()).code, Some(0));
}
