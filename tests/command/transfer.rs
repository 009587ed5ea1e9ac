//! `storage copy` and `storage verify`.

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{Place, ended, servers::output_of};

impl Place {
    /// A store with a record of each kind.
    fn with_records() -> Self {
        let place = Self::new();
        place.ok(&["credential", "set", "alice", r#"{"access_token":"ya29.secret"}"#]);
        place.ok(&["config", "set", "retries", "3"]);
        place.ok(&["usage", "increment", "alice", "requests", "5"]);
        place
    }

    /// The URL of another store in the same directory.
    fn other(&self, name: &str) -> String {
        format!("file:{}", self.dir.path().join(name).display())
    }

    /// A command whose checkpoints stay here.
    fn moving(&self, line: &[&str]) -> Command {
        let mut command = self.command(line);
        command.env("XDG_STATE_HOME", self.dir.path().join("state")).env_remove("STORAGE_URL");
        command
    }

    #[track_caller]
    fn moves(&self, code: i32, line: &[&str]) -> (String, String) {
        let ended = ended(self.moving(line).output().unwrap());
        assert_eq!(ended.code, Some(code), "{line:?}: {}{}", ended.out, ended.err);
        (ended.out, ended.err)
    }

    #[track_caller]
    fn moves_json(&self, code: i32, line: &[&str]) -> Value {
        let (out, _) = self.moves(code, &[line, &["--output", "json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("no document: {out}"))
    }
}

fn lines(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn copies_and_verifies() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    let (out, err) = place.moves(0, &["copy", &from, &to, "--verify"]);
    assert_eq!(err, "", "no progress bar in a pipe");
    let table = lines(&out);
    assert_eq!(table[0], ["read", "written", "unchanged", "skipped", "failed"]);
    assert_eq!(table[1], ["credentials", "1", "1", "0", "0", "0"]);
    assert_eq!(table[3], ["usage", "1", "1", "0", "0", "0"]);
    assert!(!out.contains("ya29"));
    place.moves(0, &["verify", &from, &to]);

    // Again: nothing to do, and no conflict.
    let report = place.moves_json(0, &["copy", &from, &to]);
    assert_eq!((&report["total"]["unchanged"], &report["complete"]), (&json!(3), &json!(true)));
    let left = fs::read_dir(place.dir.path().join("state/gateway-storage")).unwrap().count();
    assert_eq!(left, 0, "the checkpoint is gone");
}

#[test]
fn a_dry_run_makes_no_store() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    let report = place.moves_json(0, &["copy", &from, &to, "--dry-run"]);
    assert_eq!((&report["total"]["written"], &report["dry_run"]), (&json!(3), &json!(true)));
    assert!(!place.dir.path().join("copy").exists());
}

#[test]
fn a_conflict_is_found_before_anything_is_written() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    place.ok(&["--url", &to, "config", "set", "retries", "3.0"]);
    let (out, err) = place.moves(1, &["copy", &from, &to]);
    assert!(
        out.contains("failed: config `retries`: the target has a different value for this record"),
        "{out}"
    );
    assert!(err.contains("nothing was written"), "{err}");
    let found = place.moves_json(3, &["verify", &from, &to]);
    assert_eq!((&found["total"]["missing"], &found["total"]["different"]), (&json!(2), &json!(1)));

    let report = place.moves_json(0, &["copy", &from, &to, "--on-conflict", "skip"]);
    assert_eq!((&report["configs"]["skipped"], &report["total"]["written"]), (&json!(1), &json!(2)));
    assert_eq!(place.ok(&["--url", &to, "config", "get", "retries"]), "3.0\n");
    let (out, err) = place.moves(3, &["verify", &from, &to]);
    assert!(out.contains("different: config `retries`"), "{out}");
    assert_eq!(err, "error: source and target differ: 1 different\n");
    place.moves(0, &["verify", &from, &to, "--exclude", "retr*"]);
    place.moves(3, &["verify", &from, &to, "--sample", "100"]);
    let found = place.moves_json(0, &["verify", &from, &to, "--sample", "1", "--kinds", "usage"]);
    assert_eq!(found["usage"]["same"], 1);
    // A sample proves nothing about the other records.
    assert_eq!((&found["same"], &found["sampled_of"]), (&Value::Null, &json!(1)));
    let (out, _) = place.moves(0, &["verify", &from, &to, "--sample", "1", "--exclude", "retries"]);
    assert!(out.contains("a sample of 1 of 2 records"), "{out}");

    place.moves(0, &["copy", &from, &to, "--on-conflict", "overwrite", "--verify"]);
    place.ok(&["--url", &to, "config", "set", "more", "1"]);
    place.moves(0, &["copy", &from, &to, "--verify"]);
    let found = place.moves_json(3, &["verify", &from, &to]);
    assert_eq!(
        found["differences"][0],
        json!({ "kind": "config", "key": "more", "field": null, "difference": "extra" })
    );
    assert_ne!(found["source_digest"], found["target_digest"]);
}

#[test]
fn resuming_a_copy_that_never_began_detects_conflicts() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    place.ok(&["--url", &to, "config", "set", "retries", "4"]);
    let (_, err) = place.moves(1, &["copy", &from, &to, "--resume"]);
    assert!(err.contains("nothing was written"), "{err}");
    assert_eq!(place.ok(&["--url", &to, "credential", "list"]), "");
}

#[test]
fn a_dry_run_ends_as_the_copy_would() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    place.ok(&["--url", &to, "config", "set", "retries", "4"]);
    for line in [&["copy", &from, &to, "--dry-run"][..], &["copy", &from, &to]] {
        let (out, err) = place.moves(1, &[line, &["--output", "json"]].concat());
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["total"]["failed"], 1);
        let is_dry = line.contains(&"--dry-run");
        assert_eq!((&report["dry_run"], report["total"]["written"] == 0), (&json!(is_dry), !is_dry));
        let (out, _) = place.moves(1, line);
        assert_eq!(out.contains("would write"), is_dry, "{out}");
        let error: Value = serde_json::from_str(&err).unwrap();
        assert_eq!(
            (&error["error"]["kind"], &error["error"]["outcome"]),
            (&json!("conflict"), &json!("not_applied"))
        );
    }

    // Records that the target can't store are detected without writing, and are not conflicts.
    place.ok(&["--url", "git:./settings", "config", "set", "retries", "3"]);
    for (more, written) in [(&["--dry-run"][..], "not_applied"), (&[], "partly_applied")] {
        let line = [&["copy", &from, "git:./settings", "--output", "json"], more].concat();
        let (out, err) = place.moves(4, &line);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&report["usage"]["written"], &report["usage"]["failed"]), (&json!(0), &json!(1)));
        assert_eq!(
            (&report["credentials"]["written"], &report["configs"]["unchanged"]),
            (&json!(1), &json!(1))
        );
        let error: Value = serde_json::from_str(&err).unwrap();
        assert_eq!(error["error"]["outcome"], written);
    }
}

#[test]
fn the_copy_is_reported_although_the_comparison_fails() {
    let place = Place::new();
    let many: Vec<String> = (0..120).map(|n| format!(r#"{{"set":"k{n:03}","value":{n}}}"#)).collect();
    fs::write(place.dir.path().join("plan"), format!("[{}]", many.join(","))).unwrap();
    place.ok(&["config", "set", "k", "0"]);
    place.ok(&["plan", "apply", "plan", "--key", "many"]);
    place.ok(&["export", "a"]);
    let to = place.other("copy");
    let child = place
        .moving(&["--url", &to, "import", "a", "--rate", "60", "--verify", "--output", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A small file is read long before its last record is written.
    sleep(Duration::from_millis(700));
    fs::write(place.dir.path().join("a"), "no export any more").unwrap();
    let ended = ended(output_of(child));
    let report: Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{}", ended.err));
    assert_eq!((&report["total"]["written"], &report["complete"]), (&json!(121), &json!(true)));
    let error: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!((ended.code, &error["error"]["outcome"]), (Some(1), &json!("applied")));
    assert!(error["error"]["message"].as_str().unwrap().contains("could not be compared"), "{error}");
}

#[test]
fn an_invalid_checkpoint_is_named() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    let line = ["copy", &from, &to, "--checkpoint", "place"];
    fs::write(place.dir.path().join("place"), "{}").unwrap();
    let (_, err) = place.moves(2, &line);
    assert!(err.starts_with("error: `place` exists but is not a checkpoint; choose another path\n"), "{err}");
}

#[test]
fn filters() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    let report =
        place.moves_json(0, &["copy", &from, &to, "--kinds", "credentials,usage", "--include", "a*e"]);
    assert_eq!((&report["credentials"]["written"], &report["configs"]["read"]), (&json!(1), &json!(0)));
    assert_eq!(place.ok(&["--url", &to, "config", "list"]), "");
}

#[test]
fn unreachable_stores_and_invalid_arguments() {
    let place = Place::with_records();
    let (from, to) = (place.url(), place.other("copy"));
    let (_, err) = place.moves(5, &["copy", &place.other("nothing"), &to]);
    assert!(err.starts_with("error: source: there is no store in"), "{err}");
    assert!(!place.dir.path().join("copy").exists());
    let (_, err) = place.moves(5, &["copy", &from, "redis://user:hunter2@127.0.0.1:1"]);
    assert!(err.starts_with("error: target: ") && !err.contains("hunter2"), "{err}");
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    for same in [from.clone(), format!("file:{}", link.display()), "file:./store/../store".to_owned()] {
        let (_, err) = place.moves(2, &["copy", &from, &same, "--on-conflict", "overwrite"]);
        assert!(err.contains("source and target are the same store"), "{err}");
    }
    for line in [
        &["copy", &from][..],
        &["copy", &from, &to, "--kinds", "cache"],
        &["copy", &from, &to, "--include", ""],
        &["copy", &from, &to, "--batch", "0"],
        &["copy", &from, &to, "--rate", "0"],
        &["copy", &from, &to, "--resume", "--dry-run"],
        &["copy", "nothing:x", &to],
        &["copy", &from, "nothing:x"],
        &["verify", &from],
    ] {
        place.moves(2, line);
    }
    fs::write(place.dir.path().join("notes"), "mine").unwrap();
    let (_, err) = place.moves(2, &["copy", &from, &to, "--checkpoint", "notes"]);
    assert!(err.contains("is not a checkpoint"), "{err}");
    assert_eq!(fs::read_to_string(place.dir.path().join("notes")).unwrap(), "mine");
}

#[test]
fn an_interrupted_copy_saves_a_checkpoint_and_resumes() {
    for signal in ["-INT", "-TERM"] {
        let place = Place::new();
        let many: Vec<String> = (0..300).map(|n| format!(r#"{{"set":"k{n:03}","value":{n}}}"#)).collect();
        fs::write(place.dir.path().join("plan"), format!("[{}]", many.join(","))).unwrap();
        place.ok(&["config", "set", "k", "0"]);
        place.ok(&["plan", "apply", "plan", "--key", "many"]);
        let (from, to) = (place.url(), place.other("copy"));
        let begun = Instant::now();
        let child = place
            .moving(&["copy", &from, &to, "--rate", "60", "--output", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(1500));
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let stopped = ended(output_of(child));
        assert_eq!(stopped.code, Some(130), "{}", stopped.err);
        assert!(begun.elapsed() < Duration::from_secs(4), "it ends at once, not after the copy");
        let report: Value = serde_json::from_str(&stopped.out).unwrap();
        let written = report["total"]["written"].as_u64().unwrap();
        assert!((1..301).contains(&written), "{report}");
        assert_eq!(report["complete"], false);
        let error: Value = serde_json::from_str(&stopped.err).unwrap();
        assert_eq!(error["error"]["kind"], "interrupted");
        let report = place.moves_json(0, &["copy", &from, &to, "--resume", "--verify"]);
        assert_eq!((&report["resumed"], &report["total"]["read"]), (&json!(true), &json!(301)));
        assert_eq!(report["verify"]["same"], true);
    }
}

#[test]
fn resuming_needs_a_directory_for_checkpoints() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    let copy = |more: &[&str]| {
        let mut command = place.command(&[&["copy", &place.url(), &place.other("copy")], more].concat());
        ended(command.env_remove("HOME").env_remove("XDG_STATE_HOME").output().unwrap())
    };
    let refused = copy(&["--resume"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("name one with --checkpoint"), "{}", refused.err);
    assert_eq!(copy(&[]).code, Some(0));
}
