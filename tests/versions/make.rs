//! Makes the fixtures, by the command of the previous version: see `tests/fixtures/bd77b1c/make`.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use testkit::servers::{self, output_of};

use crate::{
    dump,
    previous::{CACHE, PLANS, fixture},
};

/// Credentials with names and values that are easily damaged.
const CREDENTIALS: [(&str, &str); 8] = [
    (
        "alice@example.com",
        r#"{"access_token":"ya29.made-up","refresh_token":"1//made-up","expiry":"2026-11-22T21:35:40Z",
            "scopes":["a","b"],"disabled":false,"quota":{"used":12,"limit":1000,"by_day":[[1,2],[],{}]}}"#,
    ),
    ("Alice@Example.com", r#"{"access_token":"other case"}"#),
    ("团队-001", r#"{"名称":"团队","emoji":"🦀","empty":"","null":null}"#),
    ("Ünï code/with:odd*chars%?[1]", r#"{"text":"line\nfeed \"quoted\" \\ \u0000 \ud83e\udd80"}"#),
    (
        "numbers",
        r#"{"u64":18446744073709551615,"max":9223372036854775807,"min":-9223372036854775808,"large":1e300,
            "small":5e-324,"negative_zero":-0.0,"tenth":0.1,"one":1,"float":1.0,"beyond_2_53":9007199254740993}"#,
    ),
    ("names", r#"{"$set":{"$max":1},"a.b":{"c.d":2},"":"empty","nul\u0000":3,"_id":4,"value":5,"json":6}"#),
    ("empty", "{}"),
    ("deep", ""),
];

const CONFIGS: [(&str, &str); 12] = [
    ("retries", "2"),
    ("debug", "true"),
    ("off", "false"),
    ("nothing", "null"),
    ("large", "18446744073709551615"),
    ("fraction", "0.30000000000000004"),
    ("whole float", "3.0"),
    ("text", r#""127.0.0.1:8317""#),
    ("空", r#""""#),
    ("list", r#"[1,[2,[3]],{"a":[null]},[],"x"]"#),
    ("object", r#"{"b":{"$c":1},"a":{"":[]},"团":"队"}"#),
    ("a/b\\c:d", "{}"),
];

const COUNTERS: [(&str, &str, &str); 6] = [
    ("alice", "requests", "3"),
    ("alice", "requests", "4"),
    ("alice", "tokens", "9007199254740993"),
    ("团队", "模型:gemini", "-5"),
    ("limits", "max", "9223372036854775807"),
    ("limits", "min", "-9223372036854775808"),
];

/// The longest time to live.
const TTL: &str = "10000d";

struct Previous<'u> {
    url: &'u str,
}

impl Previous<'_> {
    /// Runs the command of the previous version. Returns its output, or None if it fails.
    fn try_run(&self, arguments: &[&str], input: &str) -> Option<String> {
        let program = std::env::var_os("PREVIOUS_STORAGE").expect("PREVIOUS_STORAGE is the previous command");
        let mut command = Command::new(program);
        command.args(arguments).env("STORAGE_URL", self.url).env_remove("STORAGE_URL_FILE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = output_of(process);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    #[track_caller]
    fn run(&self, arguments: &[&str], input: &str) -> String {
        self.try_run(arguments, input).unwrap_or_else(|| panic!("{arguments:?} fails"))
    }

    fn documents(&self) {
        self.run(&["credential", "set", "gone", "-"], r#"{"access_token":"revoked"}"#);
        for (id, fields) in CREDENTIALS {
            let deep = format!("{{\"a\":{}7{}}}", "[".repeat(60), "]".repeat(60));
            self.run(&["credential", "set", id, "-"], if fields.is_empty() { &deep } else { fields });
        }
        for (key, value) in CONFIGS {
            self.run(&["config", "set", key, "-"], value);
        }
        self.run(&["credential", "delete", "gone"], "");
    }

    /// What the plans do, for a backend without plans.
    fn edits(&self) {
        for (key, value) in [("retries", "1"), ("retries", "2"), ("retries", "3")] {
            self.run(&["config", "set", key, "-"], value);
        }
        self.run(&["config", "set", "models", "-"], r#"["gemini-2.5-pro"]"#);
        self.run(&["config", "set", "large", "-"], "-9007199254740993");
        self.run(&["config", "set", "mode", "-"], "null");
        self.run(&["config", "delete", "debug"], "");
    }

    fn plans(&self) {
        let [first, second, third, fourth] = PLANS;
        let apply = |(key, changes): (&str, &str), more: &[&str]| {
            self.try_run(&[&["plan", "apply", "-", "--key", key, "--ttl", TTL], more].concat(), changes)
        };
        apply(first, &[]).unwrap();
        self.run(&["plan", "rollback", first.0], "");
        self.run(&["plan", "rollback", first.0], "");
        apply(second, &["--stage", "canary", "--source", "alice@example.com"]).unwrap();
        apply(second, &[]).unwrap();
        assert!(apply((second.0, third.1), &[]).is_none() && apply(third, &[]).is_none());
        apply(fourth, &["--stage", "阶段"]).unwrap();
    }

    fn counters(&self) {
        for (key, field, delta) in COUNTERS {
            self.run(&["usage", "increment", key, field, "--", delta], "");
        }
    }

    fn everything(&self) -> String {
        self.documents();
        self.plans();
        self.counters();
        self.run(&["export", "-"], "")
    }
}

/// The records of an export file.
fn records(export: &str) -> Vec<&str> {
    let lines: Vec<&str> = export.lines().collect();
    lines[1..lines.len() - 1].to_vec()
}

#[tokio::test]
async fn make() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let store = |kind: &str, path: &Path| format!("{kind}:{}", path.display());

    let url = store("file", &at("file"));
    let export = Previous { url: &url }.everything();
    dump::file(&at("file"));
    fs::write(fixture("export.ndjson"), &export).unwrap();

    fs::create_dir(at("git")).unwrap();
    let url = store("git", &at("git").join("store"));
    let previous = Previous { url: &url };
    previous.documents();
    previous.edits();
    let documents: Vec<_> =
        records(&export).into_iter().filter(|line| !line.contains(r#""kind":"usage""#)).collect();
    assert_eq!(records(&previous.run(&["export", "-"], "")), documents);
    dump::git(&at("git"));

    let server = servers::redis::Server::start(&[]);
    let url = server.url();
    let previous = Previous { url: &url };
    assert_eq!(records(&previous.everything()), records(&export));
    for (key, value) in CACHE {
        previous.run(&["cache", "set", key, "-", "--ttl", TTL], value);
    }
    dump::redis(&url);

    let server = servers::postgres::Server::start(&[]);
    assert_eq!(records(&Previous { url: &server.url() }.everything()), records(&export));
    dump::postgres(&server);

    let url = servers::mongodb_alone();
    assert_eq!(records(&Previous { url: &url }.everything()), records(&export));
    dump::mongodb(&url).await;
}
