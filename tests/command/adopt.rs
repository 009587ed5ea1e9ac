//! `storage adopt`.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::Place;

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/go").join(name);
    format!("file:{}", path.display())
}

impl Place {
    /// A directory with legacy data beside the store, in the layout `file`.
    fn legacy(&self, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            let path = self.dir.path().join("left").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        "file:left".to_owned()
    }
}

#[test]
fn legacy_data_is_adopted() {
    let place = Place::new();
    let (source, target) = (fixture("file"), place.url());
    let dry = place.json(&["adopt", &source, &target, "--dry-run"]);
    assert_eq!(
        (&dry["layout"], &dry["total"]["written"], &dry["dry_run"]),
        (&json!("file"), &json!(90), &json!(true))
    );
    assert!(!place.path().exists(), "a dry run makes no store");

    let done = place.json(&["adopt", &source, &target, "--verify"]);
    assert_eq!(
        (&done["layout"], &done["complete"], &done["remarks"]),
        (&json!("file"), &json!(true), &json!([]))
    );
    assert_eq!(done["credentials"]["written"], 30);
    assert_eq!(done["verify"]["same"], true);
    assert_eq!(place.json(&["usage", "get", "total"])["total_requests"], 55202);
    assert_eq!(
        place.json(&["credential", "get", "user.name@example.com-003", "--reveal"])["HealthScore"],
        json!(0.178)
    );
    // Again: nothing is left to do.
    let again = place.ok(&["adopt", &source, &target]);
    assert!(again.starts_with("found: gcli2api-go layout `file`\n"), "{again}");
    assert_eq!(place.json(&["adopt", &source, &target])["total"]["unchanged"], 90);
}

#[test]
fn unreadable_entries_are_listed_and_exit_with_four() {
    let place = Place::new();
    let source = place.legacy(&[
        ("credentials/good.json", r#"{"access_token":"x"}"#),
        ("credentials/half.json", r#"{"access_token":"ya29"#),
        ("credentials/line\u{1b}[2J.json", "{}"),
        ("credentials/notes.txt", "x"),
        ("usage/k.json", r#"{"n":1,"last":"yesterday"}"#),
    ]);
    let target = place.url();
    let ended = place.run(&["adopt", &source, &target]);
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    assert_eq!(ended.err, "error: 3 entries were not understood and were not adopted\n");
    for line in [
        "not understood (3):",
        "  credentials/half.json: the text ends too early, at line 1 column 21",
        "  usage/k.json last: the counter is not an integer of 64 bits",
        "left out (1):",
        "  credentials/notes.txt: its name does not end with `.json`",
    ] {
        assert!(ended.out.lines().any(|found| found == line), "{line}: {}", ended.out);
    }
    assert!(!ended.out.contains('\u{1b}') && !ended.out.contains("ya29"), "{:?}", ended.out);
    assert_eq!(place.ok(&["credential", "list"]), "good\n");
    assert_eq!(place.ok(&["usage", "list"]), "k\tn\t1\n");

    let ended = place.run(&["adopt", &source, &target, "--output", "json"]);
    let document: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, &document["complete"]), (Some(4), &json!(false)));
    assert_eq!(document["remarks"].as_array().unwrap().len(), 4);
    assert!(document["remarks"].as_array().unwrap().contains(&json!({
        "kind": "not_understood",
        "place": "credentials/half.json",
        "reason": "the text ends too early, at line 1 column 21",
    })));
}

#[test]
fn the_layout_can_be_named() {
    let place = Place::new();
    let source = place
        .legacy(&[("credentials/a.json", r#"{"access_token":"x"}"#), ("b.json", r#"{"access_token":"x"}"#)]);
    let target = place.url();
    assert_eq!(
        place.fails(2, &["adopt", &source, &target]),
        "error: source: the data may have more than one layout: `file`, `folder`; name one (`--layout` on a command line)\n"
    );
    let ended = place.run(&["adopt", &source, &target, "--layout", "folder"]);
    assert_eq!(ended.err, "error: 1 entry was not understood and was not adopted\n");
    assert!(
        ended.out.ends_with("\nnot understood (1):\n  credentials: a directory, which is not searched\n"),
        "{}",
        ended.out
    );
    assert_eq!(place.ok(&["credential", "list"]), "b\n");
    assert!(
        place.fails(2, &["adopt", &source, &target, "--layout", "sqlite"]).contains("must be one of `file`")
    );
    assert_eq!(place.fails_as(2, &["adopt", &source, &target, "--layout", "redis"]), "invalid_value");
}

#[test]
fn other_sources_are_refused() {
    let place = Place::new();
    let target = place.url();
    assert_eq!(place.fails_as(5, &["adopt", "file:nowhere", &target]), "not_found");
    assert_eq!(place.fails_as(2, &["adopt", "memory:", &target]), "invalid_value");
    assert_eq!(place.fails_as(2, &["adopt", "redis://h/1", "redis://h:6379/1?prefix=gcli2api:"]), "usage");
    assert!(!place.path().exists());
    place.legacy(&[("credentials/a.json", "{}")]);
    std::os::unix::fs::symlink("left", place.dir.path().join("link")).unwrap();
    for within in ["file:left", "file:left/credentials/new", "file:./left/../left/new", "file:link/new"] {
        assert_eq!(place.fails_as(2, &["adopt", "file:left", within]), "usage", "{within}");
    }
    fs::remove_file(place.dir.path().join("left/credentials/a.json")).unwrap();

    let source = place.legacy(&[("credentials/.keep", "")]);
    fs::remove_file(place.dir.path().join("left/credentials/.keep")).unwrap();
    assert_eq!(place.fails_as(1, &["adopt", &source, &target]), "not_found");
    assert!(!place.path().exists());
    place.ok(&["config", "set", "a", "1"]);
    assert_eq!(place.fails_as(2, &["adopt", &target, "memory:"]), "invalid_value", "a store of ours");
}
