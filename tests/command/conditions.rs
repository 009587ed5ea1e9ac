//! `--revision`, `--if-revision` and `--if-absent`.

use serde_json::json;

use super::Place;

#[test]
fn a_value_is_set_and_deleted_only_if_it_is_unchanged() {
    let place = Place::new();
    let first = place.ok(&["config", "set", "retries", "3", "--if-absent"]);
    let first = first.trim();
    assert_eq!((first.len(), first.contains(|digit: char| !digit.is_ascii_hexdigit())), (40, false));
    assert_eq!(place.ok(&["config", "get", "retries", "--revision"]), format!("{first}\n3\n"));
    let shown = place.json(&["config", "get", "retries", "--revision"]);
    assert_eq!(shown, json!({ "revision": first, "value": 3 }));

    let exists = place.fails(1, &["config", "set", "retries", "4", "--if-absent"]);
    assert_eq!(
        exists,
        "error: the record was changed, created or deleted meanwhile: read it again\n  key: retries\n"
    );
    let second = place.ok(&["config", "set", "retries", "4", "--if-revision", first]);
    assert_eq!(place.fails_as(1, &["config", "set", "retries", "5", "--if-revision", first]), "conflict");
    assert_eq!(place.fails_as(1, &["config", "delete", "retries", "--if-revision", first]), "conflict");
    assert_eq!(place.ok(&["config", "get", "retries"]), "4\n");
    assert_eq!(place.ok(&["config", "delete", "retries", "--if-revision", second.trim()]), "");
    assert_eq!(
        place.fails_as(1, &["config", "delete", "retries", "--if-revision", second.trim()]),
        "not_found"
    );
}

#[test]
fn a_revision_of_a_credential_shows_no_value() {
    let place = Place::new();
    let first = place.ok(&["credential", "set", "alice", r#"{"token":"s3cret"}"#, "--if-absent"]);
    assert_eq!(place.ok(&["credential", "get", "alice", "--revision"]), first);
    let revealed = place.ok(&["credential", "get", "alice", "--revision", "--reveal"]);
    assert_eq!(revealed, format!("{first}{{\"token\":\"s3cret\"}}\n"));
    let line = ["credential", "set", "alice", "{}", "--if-revision", first.trim()];
    let second = place.ok(&line);
    assert_eq!(place.fails_as(1, &line), "conflict");
    assert_eq!(
        place.fails_as(1, &["credential", "delete", "alice", "--if-revision", first.trim()]),
        "conflict"
    );
    assert_eq!(place.ok(&["credential", "delete", "alice", "--if-revision", second.trim()]), "");
}

#[test]
fn a_wrong_condition_is_a_mistake_of_the_command_line() {
    let place = Place::new();
    let line = ["config", "set", "a", "1", "--if-revision", "abc"];
    assert_eq!(place.fails_as(2, &line), "invalid_value");
    assert!(place.fails(2, &line).contains("a revision must be 40 hexadecimal digits"));
    let revision = "0".repeat(40);
    let both = ["config", "set", "a", "1", "--if-absent", "--if-revision", &revision];
    assert_eq!(place.fails_as(2, &both), "usage");
}
