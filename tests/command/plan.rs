//! `storage plan`.

use std::fs;

use serde_json::{Value, json};

use crate::Place;

const HASH: &str = "payload_hash";

impl Place {
    /// A store with one config value, and a plan file beside it.
    fn with_plan(plan: &Value) -> Self {
        let place = Self::new();
        place.ok(&["config", "set", "retries", "2"]);
        place.write(plan);
        place
    }

    fn write(&self, plan: &Value) {
        fs::write(self.dir.path().join("plan.json"), plan.to_string()).unwrap();
    }
}

fn first() -> Value {
    json!([
        { "set": "retries", "value": 3, "expect": 2 },
        { "set": "secret", "value": "sk-1", "expect_absent": true },
        { "delete": "debug" },
    ])
}

#[test]
fn errors_in_a_file_are_reported() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    for (text, says) in [
        (
            r#"[{"set":"a","value":1,"expcet":2}]"#,
            "mutation 1 has an unknown field; the fields of a mutation: `set`, `delete`, `value`, `expect`",
        ),
        (r#"[{"delete":"b"},{"set":"a"}]"#, "mutation 2 has `set` but no `value`"),
        (
            r#"[{"set":"a","value":{"x":1,"x":2}}]"#,
            "an object in the value has a name twice, at line 1 column",
        ),
    ] {
        let ended = place.fed(text, &["plan", "apply", "-", "--key", "k"]);
        assert_eq!(ended.code, Some(2));
        assert!(ended.err.starts_with(&format!("error: {says}")), "{}", ended.err);
    }
    assert_eq!(place.ok(&["config", "get", "a"]), "1\n");
}

#[test]
fn a_plan_is_applied_once_and_rolled_back_once() {
    let place = Place::with_plan(&first());
    assert_eq!(place.ok(&["plan", "apply", "plan.json", "--key", "k", "--stage", "canary"]), "applied\n");
    assert_eq!(place.ok(&["config", "get", "retries"]), "3\n");
    place.ok(&["config", "set", "retries", "4"]);
    let replayed = place.json(&["plan", "apply", "plan.json", "--key", "k"]);
    assert_eq!(replayed["result"], "replayed");
    assert_eq!(replayed[HASH].as_str().unwrap().len(), 64);
    assert_eq!(place.ok(&["config", "get", "retries"]), "4\n");

    let refused = place.fails(1, &["plan", "rollback", "k"]);
    assert_eq!(
        refused,
        "error: these values were changed since the plan was applied: retries\n  hint: nothing was rolled back; --force also restores these\n"
    );
    assert_eq!(place.fails_as(1, &["plan", "rollback", "k"]), "conflict");
    assert_eq!(place.ok(&["plan", "rollback", "k", "--force"]), "rolled_back\n");
    assert_eq!(place.ok(&["config", "list"]), "retries\n");
    assert_eq!(place.ok(&["config", "get", "retries"]), "2\n");
    assert_eq!(place.json(&["plan", "rollback", "k"])["result"], "already_rolled_back");
    assert_eq!(place.fails_as(1, &["plan", "apply", "plan.json", "--key", "k"]), "conflict");
    assert_eq!(place.fails_as(1, &["plan", "rollback", "other"]), "not_found");
}

#[test]
fn another_plan_under_its_key_is_refused() {
    let place = Place::with_plan(&first());
    place.ok(&["plan", "apply", "plan.json", "--key", "k", "--ttl", "1h"]);
    place.write(&json!([{ "set": "retries", "value": 9 }]));
    assert_eq!(
        place.fails(1, &["plan", "apply", "plan.json", "--key", "k"]),
        "error: another plan was applied under this key\n"
    );
    assert_eq!(place.ok(&["config", "get", "retries"]), "3\n");
}

#[test]
fn expectations_must_hold() {
    let place = Place::with_plan(&json!([{ "set": "a", "value": 1 }, { "delete": "retries", "expect": 3 }]));
    let refused = place.fails(1, &["plan", "apply", "plan.json", "--key", "k"]);
    assert!(refused.ends_with("key: retries\n"), "{refused}");
    assert_eq!(place.ok(&["config", "list"]), "retries\n");
}

#[test]
fn a_dry_run_changes_nothing_and_hides_values() {
    let place = Place::with_plan(&first());
    let line = ["plan", "apply", "plan.json", "--key", "k", "--dry-run"];
    assert_eq!(place.ok(&line), "debug    none\nretries  change\nsecret   set\n");
    let revealed = place.ok(&[&line[..], &["--reveal"]].concat());
    assert_eq!(
        revealed,
        "debug    none  nothing -> nothing\nretries  change  2 -> 3\nsecret   set  nothing -> \"sk-1\"\n"
    );
    let documents = place.json(&line);
    assert_eq!(documents[1], json!({ "key": "retries", "change": "change", "expected": true }));
    assert!(!documents.to_string().contains("sk-1"));
    let revealed = place.json(&[&line[..], &["--reveal"]].concat());
    assert_eq!(revealed[1]["before"], 2);
    assert_eq!(revealed[2]["after"], "sk-1");

    place.ok(&["config", "set", "retries", "5"]);
    let refused = place.run(&line);
    assert_eq!(refused.code, Some(1), "the exit code of the real run");
    assert!(refused.out.contains("retries  change  (not what the plan expects: it would be refused)\n"));
    assert_eq!(
        refused.err,
        "error: the plan would be refused: a value is not what the plan expects\n  key: retries\n"
    );
    let refused = place.run(&[&line[..], &["--output", "json"]].concat());
    let (out, err): (Value, Value) =
        (serde_json::from_str(&refused.out).unwrap(), serde_json::from_str(&refused.err).unwrap());
    assert_eq!((&out[1]["expected"], &err["error"]["kind"]), (&json!(false), &json!("conflict")));
    assert_eq!(place.fails_as(2, &[&line[..], &["--ttl", "0s"]].concat()), "invalid_value");
    assert_eq!(place.ok(&["config", "list"]), "retries\n");
    assert_eq!(place.ok(&["plan", "audit"]), "");
}

#[test]
fn a_dry_run_checks_the_key() {
    let place = Place::with_plan(&first());
    let line = ["plan", "apply", "plan.json", "--key", "k"];
    let dry = [&line[..], &["--dry-run"]].concat();
    place.ok(&line);
    place.ok(&["config", "set", "retries", "7"]);
    let replayed = place.ok(&[&dry[..], &["--reveal"]].concat());
    assert!(
        replayed.contains("retries  none  7 -> 7  (the plan was applied before: it would be replayed)\n"),
        "{replayed}"
    );
    assert_eq!(place.json(&dry)[1], json!({ "key": "retries", "change": "none", "expected": true }));
    assert_eq!(place.ok(&line), "replayed\n");

    place.write(&json!([{ "set": "retries", "value": 9 }]));
    let says = "another plan was applied under this key";
    assert_eq!(place.run(&dry).err, format!("error: the plan would be refused: {says}\n"));
    for line in [&line[..], &dry] {
        let ended = place.run(line);
        assert!(ended.code == Some(1) && ended.err.contains(says), "{}", ended.err);
    }

    place.write(&first());
    place.ok(&["plan", "rollback", "k", "--force"]);
    for line in [&line[..], &dry] {
        let ended = place.run(line);
        assert!(
            ended.code == Some(1) && ended.err.contains("the plan of this key was rolled back"),
            "{}",
            ended.err
        );
    }
    // The record has expired, so the key is free again.
    place.ok(&[&dry[..], &["--ttl", "1ms"]].concat());
    assert_eq!(place.ok(&["config", "get", "retries"]), "2\n");
}

#[test]
fn the_audit_is_newest_first_and_holds_no_values() {
    let place = Place::with_plan(&first());
    place.ok(&["plan", "apply", "plan.json", "--key", "k", "--stage", "canary", "--source", "me@host"]);
    place.ok(&["plan", "apply", "plan.json", "--key", "k"]);
    place.fails(1, &["plan", "rollback", "unknown"]);
    let audit = place.ok(&["plan", "audit"]);
    let rows: Vec<Vec<&str>> = audit.lines().map(|line| line.split('\t').collect()).collect();
    let wanted = [
        ["failed", "rollback", "unknown", "0", "-", "storage plan", "not_found"],
        ["replayed", "apply", "k", "3", "-", "storage plan", "-"],
        ["committed", "apply", "k", "3", "canary", "me@host", "-"],
    ];
    assert_eq!(rows.iter().map(|row| &row[1..]).collect::<Vec<_>>(), wanted);
    assert!(rows.iter().all(|row| row[0].ends_with('Z')), "{audit}");
    assert!(!audit.contains("sk-1") && !audit.contains("retries"));

    let documents = place.json(&["plan", "audit", "--key", "k", "--status", "committed", "--since", "1h"]);
    assert_eq!(documents.as_array().unwrap().len(), 1);
    let names: Vec<_> = documents[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "action",
            "backend",
            "duration_seconds",
            "error",
            "finished",
            "key",
            "mutations",
            HASH,
            "source",
            "stage",
            "started",
            "status"
        ]
    );
    assert_eq!(place.ok(&["plan", "audit", "--stage", "canary"]).lines().count(), 1);
    assert_eq!(place.ok(&["plan", "audit", "--limit", "2"]).lines().count(), 2);
    assert_eq!(place.ok(&["plan", "audit", "--since", "2100-01-01T00:00:00Z"]), "");
    place.fails(2, &["plan", "audit", "--since", "yesterday"]);
    place.fails(2, &["plan", "audit", "--status", "done"]);
}

#[test]
fn an_invalid_file_is_a_usage_error() {
    let place = Place::with_plan(&json!({ "set": "a" }));
    let line = ["plan", "apply", "plan.json", "--key", "k"];
    assert_eq!(place.fails_as(2, &line), "invalid_value");
    place.write(&json!([{ "set": "a", "valeu": "sk-1" }]));
    assert!(!place.fails(2, &line).contains("sk-1"));
    place.fails(2, &["plan", "apply", "missing.json", "--key", "k"]);
    place.fails(2, &["plan", "apply", "plan.json"]);
    place.fails(2, &["plan", "apply", "plan.json", "--key", "k", "--reveal"]);
    place.write(&first());
    assert_eq!(place.fails_as(2, &[&line[..], &["--ttl", "0s"]].concat()), "invalid_value");
    let fed = place.fed(&first().to_string(), &["plan", "apply", "-", "--key", "k"]);
    assert_eq!((fed.code, fed.out.as_str()), (Some(0), "applied\n"), "{}", fed.err);
    let elsewhere = Place::new();
    elsewhere.write(&first());
    elsewhere.fails(5, &line);
}

/// Its time is the year 10000, which no store writes.
#[test]
fn an_audit_entry_with_an_impossible_time_is_corrupt() {
    let url = crate::servers::redis();
    let (server, prefix) = url.split_once("?prefix=").unwrap();
    let place = Place::new();
    place.ok(&["--url", &url, "config", "set", "a", "1"]);
    let mut raw = crate::servers::redis::Raw::to(server);
    let entry = "253402300800000-0 key p action apply status committed micros 1 mutations 1";
    raw.words(&format!("XADD {{{prefix}config}}:audit {entry}"));
    for output in ["human", "json"] {
        let error = place.fails(1, &["--url", &url, "--output", output, "plan", "audit"]);
        assert!(error.contains("can't be read"), "{error}");
    }
}
