//! `Ok` is durable: checks the order of system calls with strace.
#![cfg(target_os = "linux")]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use gateway_storage::{Credential, Git, Key, Storage};
use serde_json::json;

use super::{clone_of, shared::Clones};

/// The variable with the directory of the clones, for the traced process.
const WATCHED: &str = "GATEWAY_STORAGE_GIT_WATCHED";

fn batch(name: &str) -> Vec<(Key, Credential)> {
    let fields = Credential::try_from(json!({ "name": name })).unwrap();
    (0..120).map(|n| (Key::new(&format!("{name}-{n}")).unwrap(), fields.clone())).collect()
}

/// The traced process, if the variable is set: fetches, and sends writes, as single files and as packs.
#[test]
fn runs_as_the_traced_process() {
    let Some(base) = std::env::var_os(WATCHED).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let storage =
            Storage::<Git>::open(clone_of(&base.join("remote.git"), base.join("one"))).await.unwrap();
        storage.set_config("c", json!(1)).await.unwrap();
        storage.set_credentials(&batch("mine")).await.unwrap().complete().unwrap();
        // The file of this key is in a directory of its own.
        storage.set_config("x".repeat(240), json!(1)).await.unwrap();
        storage.close().await.unwrap();
    });
}

#[tokio::test]
async fn objects_are_on_disk_before_a_branch_names_them() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    one.close().await.unwrap();
    let other = clones.open("other").await;
    other.set_credentials(&batch("other")).await.unwrap().complete().unwrap();
    other.close().await.unwrap();

    let (base, trace) = (clones.at(""), clones.at("trace"));
    let traced = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "4096",
            "-e",
            "trace=open,openat,rename,renameat,renameat2,link,unlink,unlinkat,fsync,fdatasync",
            "-o",
        ])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["runs_as_the_traced_process", "--nocapture"])
        .env(WATCHED, &base)
        .stdout(Stdio::null())
        .status()
        .expect("strace is installed");
    assert!(traced.success());
    clones.are_in_order(&["one"]);

    let (mut waiting, mut unsynced) = (HashMap::new(), BTreeSet::new());
    let (mut synced, mut moved) = (0, BTreeSet::new());
    let (mut directory, mut is_directory_synced) = (None, false);
    for line in fs::read_to_string(trace).unwrap().lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        // strace prints an interrupted call in two parts.
        let call = call.trim_start();
        let call = match (call.strip_suffix("<unfinished ...>"), call.split_once(" resumed>")) {
            (Some(begun), _) => {
                waiting.insert(thread.to_owned(), begun.to_owned());
                continue;
            }
            (None, Some((_, end))) => waiting.remove(thread).unwrap() + end,
            (None, None) => call.to_owned(),
        };
        if call.contains(" = -1 ") {
            continue;
        }
        let named: Vec<&str> = call.split('"').skip(1).step_by(2).collect();
        let is_object = |path: &str| path.contains("/objects/");
        match call.split('(').next().unwrap() {
            "open" | "openat" if call.contains("O_CREAT") && is_object(named[0]) => {
                unsynced.insert(named[0].to_owned());
            }
            "fsync" | "fdatasync" => {
                let path = call.split_once('<').unwrap().1.split_once('>').unwrap().0;
                synced += usize::from(unsynced.remove(path));
                is_directory_synced |= directory.as_deref() == Some(path);
            }
            "open" | "openat" if call.contains("O_CREAT") && named[0].contains("/config/xxx") => {
                let parent = Path::new(named[0]).parent().unwrap();
                (directory, is_directory_synced) = (parent.to_str().map(str::to_owned), false);
            }
            // It existed before.
            "unlink" | "unlinkat" => drop(unsynced.remove(named[0])),
            "rename" | "renameat" | "renameat2" | "link" => {
                if unsynced.remove(named[0]) {
                    unsynced.insert(named[1].to_owned());
                }
                if named[1].ends_with("/main") && named[1].contains("/refs/") {
                    let name = Path::new(named[1]).strip_prefix(&base).unwrap().to_owned();
                    assert!(
                        unsynced.is_empty(),
                        "{} moves, and not on disk are {unsynced:?}",
                        name.display()
                    );
                    moved.insert(name);
                }
            }
            _ => {}
        }
    }
    assert!(is_directory_synced, "{directory:?} is not on disk");
    // All branches, and all objects that were fetched, written and sent.
    let tracking = "one/.git/refs/remotes/gateway-storage/main";
    let wanted = [tracking, "one/.git/refs/heads/main", "remote.git/refs/heads/main"].map(PathBuf::from);
    assert_eq!(moved, BTreeSet::from(wanted));
    assert!(synced > 10, "{synced} files are not all of them");
}
