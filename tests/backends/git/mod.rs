//! The Git backend's own guarantees, checked with the real `git`.

mod conditional;
mod crash;
mod daemon;
mod durable;
mod history;
mod lists;
mod opens;
mod rewritten;
mod shared;
mod trouble;
mod watch;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use gateway_storage::{Error, Git, GitOptions, Storage, git::GitSync};

/// The process to kill, if the variable is set; otherwise an empty test.
#[test]
fn writes_until_it_is_killed() {
    if let Some(path) = std::env::var_os(crash::WRITER) {
        crash::write(Path::new(&path));
    }
}

fn config(path: impl Into<PathBuf>) -> GitOptions {
    GitOptions::new(path)
}

async fn open(path: impl Into<PathBuf>) -> Result<Storage<Git>, Error> {
    Storage::open(config(path)).await
}

/// Options for a clone that sends writes and does nothing else automatically.
fn clone_of(remote: &Path, path: impl Into<PathBuf>) -> GitOptions {
    let mut config = config(path);
    config.remote = Some(remote.to_str().unwrap().to_owned());
    (config.pull, config.push) = (GitSync::Interval, GitSync::Write);
    config.interval = std::time::Duration::from_secs(3600);
    config
}

/// Runs git, which must succeed, and returns its output.
#[track_caller]
fn git(path: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    // Without the settings of this machine and user.
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("LC_ALL", "C");
    for who in ["GIT_AUTHOR", "GIT_COMMITTER"] {
        command.env(format!("{who}_NAME"), "A Person").env(format!("{who}_EMAIL"), "person@example.com");
    }
    let output = command.arg("-C").arg(path).args(arguments).output().expect("git is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "git {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Asserts that git finds no damage and nothing to commit.
#[track_caller]
fn is_clean(path: &Path) {
    git(path, &["fsck", "--strict", "--no-dangling"]);
    assert_eq!(git(path, &["status", "--porcelain"]), "");
}

fn commits(path: &Path) -> usize {
    git(path, &["rev-list", "--count", "HEAD"]).trim().parse().unwrap()
}

fn bare(path: &Path) {
    git(path.parent().unwrap(), &["init", "--quiet", "--bare", "-b", "main", path.to_str().unwrap()]);
}
