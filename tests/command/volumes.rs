//! Directories as platforms mount them: of another user, with things in them, or not to be written.

use std::{
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    time::Duration,
};

use super::*;

/// A copy of the program where every user can run it.
fn program(place: &Place) -> PathBuf {
    let program = place.dir.path().join("storage");
    fs::copy(env!("CARGO_BIN_EXE_storage"), &program).unwrap();
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// As Kubernetes gives a volume to the group of a pod (`fsGroup`). Only root can make one of another user: another user has a
/// volume of its own here, with the same modes.
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
        // The next pod has another user, and the volume's files were given to the group.
        chown(&store, Some(0), Some(4242)).unwrap();
        set_mode(&store, 0o660);
        assert_eq!(run(&ours, &["config", "get", "a"]).out, "1\n");
        assert_eq!(run(&ours, &["config", "set", "a", "2"]).code, Some(0));
        set_mode(&store, 0o666);
        let open = run(&ours, &["config", "set", "a", "3"]);
        assert_eq!(open.code, Some(5));
        assert!(open.err.contains("has the mode 666, so that other users can read it"), "{}", open.err);

        let everybodys = volume("everybodys", 0o2777);
        let refused = run(&everybodys, &["config", "set", "a", "1"]);
        assert_eq!(refused.code, Some(5));
        assert!(refused.err.contains("other users can write to it"), "{}", refused.err);
        assert!(refused.err.contains("name a new directory in it"), "{}", refused.err);
        assert_eq!(fs::read_dir(&everybodys).unwrap().count(), 0, "nothing is left behind");
        assert_eq!(run(&everybodys.join("store"), &["config", "set", "a", "1"]).code, Some(0));
    }
}

#[test]
fn what_a_volume_brings_along_is_no_data() {
    let place = Place::new();
    for name in ["lost+found", ".snapshot", ".Trash-1000"] {
        fs::create_dir_all(place.path().join(name)).unwrap();
    }
    place.ok(&["config", "set", "a", "1"]);
    assert_eq!(place.ok(&["config", "get", "a"]), "1\n");
    assert!(place.path().join("lost+found").is_dir());
}

/// As another user if this is root, who may write in any case.
#[test]
fn a_store_that_can_not_be_written_is_read() {
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
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    // So that it can be removed.
    set_mode(&place.path(), 0o755);
}

#[tokio::test]
async fn a_store_that_is_open_elsewhere_can_be_waited_for() {
    let place = Place::new();
    let held = Storage::<File>::open(&*place.url()).await.unwrap();
    let url = |wait: &str| format!("{}?wait={wait}", place.url());
    let refused = place.fails(5, &["--url", &url("20ms"), "config", "list"]);
    assert!(refused.contains("is already open"), "{refused}");
    assert!(refused.contains("wait for it"), "{refused}");
    let waiting = place.command(&["--url", &url("60s"), "config", "set", "a", "1"]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    held.close().await.unwrap();
    assert_eq!(ended(waiting.wait_with_output().unwrap()).code, Some(0));
}
