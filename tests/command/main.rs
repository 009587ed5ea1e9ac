//! The command `storage`, run as an operator runs it.
#![cfg(feature = "full")]

mod adopt;
mod archive;
mod backup;
mod beside;
mod conditions;
mod git;
mod leases;
mod lists;
mod many;
mod plan;
mod refusals;
mod stops;
#[cfg(target_os = "linux")]
mod terminal;
mod transfer;
mod urls;
mod volumes;
mod watch;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use gateway_storage::{Credential, File, Key, Storage};
use serde_json::{Value, json};
use tempfile::TempDir;

use testkit::servers::{self, output_of};

/// A directory for a store that does not exist yet.
struct Place {
    dir: TempDir,
}

/// How a command ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A file beside the store.
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self) -> String {
        format!("file:{}", self.path().display())
    }

    /// The command, with the URL in its environment and a working directory of its own.
    fn command(&self, line: &[&str]) -> Command {
        let mut command = bare(line);
        command.env("STORAGE_URL", self.url()).current_dir(self.dir.path());
        command.env("XDG_STATE_HOME", self.dir.path().join("state"));
        command
    }

    fn run(&self, line: &[&str]) -> Ended {
        let mut command = self.command(line);
        ended(output_of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// Runs a command that must succeed, and returns its output.
    #[track_caller]
    fn ok(&self, line: &[&str]) -> String {
        let ended = self.run(line);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{line:?}");
        ended.out
    }

    /// Runs a command that must succeed with `--output json`, and returns its document.
    #[track_caller]
    fn json(&self, line: &[&str]) -> Value {
        let out = self.ok(&[&["--output", "json"], line].concat());
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// Runs a command that must fail with this code, and returns its stderr.
    #[track_caller]
    fn fails(&self, code: i32, line: &[&str]) -> String {
        let ended = self.run(line);
        assert_eq!((ended.code, ended.out.as_str()), (Some(code), ""), "{line:?}: {}", ended.err);
        ended.err
    }

    /// As [`fails`](Self::fails) with `--output json`; returns the kind.
    #[track_caller]
    fn fails_as(&self, code: i32, line: &[&str]) -> String {
        let err = self.fails(code, &[&["--output=json"], line].concat());
        let document: Value = serde_json::from_str(&err).unwrap_or_else(|_| panic!("no document: {err}"));
        let error = document["error"].as_object().unwrap();
        let names = error.keys().filter(|name| *name != "code" && *name != "key").collect::<Vec<_>>();
        assert_eq!(names, ["hint", "kind", "message", "outcome"]);
        assert_eq!(error["outcome"], "not_applied");
        assert!(!error["message"].as_str().unwrap().is_empty());
        error["kind"].as_str().unwrap().to_owned()
    }

    /// Runs a command with text on stdin.
    fn fed(&self, input: &str, line: &[&str]) -> Ended {
        let mut child = self
            .command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        ended(output_of(child))
    }
}

/// Copies the command. Another process writes the copy: a file that this process writes is busy while another
/// test starts a process.
fn copy_command(to: &std::path::Path) {
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_storage")).arg(to).status().unwrap().success());
}

fn bare(line: &[&str]) -> Command {
    let mut command = servers::interruptible(env!("CARGO_BIN_EXE_storage"));
    command.args(line).env_remove("STORAGE_URL").env_remove("STORAGE_CONFIG").stdin(Stdio::null());
    command
}

fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Permissions do not apply to root.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0)
}

#[test]
fn credentials() {
    let place = Place::new();
    assert_eq!(
        place.ok(&["credential", "set", "b", r#"{"access_token":"ya29","n":{"deep":[1]},"z":null}"#]),
        ""
    );
    assert_eq!(place.ok(&["credential", "set", "a", "{}"]), "");
    assert_eq!(place.ok(&["credential", "list"]), "a\nb\n");

    let hidden = "\"access_token\": <hidden>\n\"n\": <hidden>\n\"z\": <hidden>\n";
    assert_eq!(place.ok(&["credential", "get", "b"]), hidden);
    let shown: Value = serde_json::from_str(&place.ok(&["credential", "get", "b", "--reveal"])).unwrap();
    assert_eq!(shown, json!({ "access_token": "ya29", "n": { "deep": [1] }, "z": null }));

    assert_eq!(place.ok(&["credential", "delete", "b"]), "");
    assert_eq!(place.fails(1, &["credential", "get", "b"]), "error: no credential has this id\n  key: b\n");
    assert_eq!(
        place.fails(1, &["credential", "delete", "b"]),
        "error: no credential has this id\n  key: b\n"
    );
}

#[test]
fn some_fields_of_a_credential_are_changed() {
    let place = Place::new();
    assert_eq!(place.fails_as(5, &["credential", "patch", "a", "{}"]), "not_found");
    place.ok(&["credential", "set", "a", r#"{"token":"x","note":"old","quota":{"day":1,"hour":2}}"#]);
    let patch = r#"{"note":null,"disabled":true,"quota":{"day":5}}"#;
    assert_eq!(place.ok(&["credential", "patch", "a", patch]), "");
    let wanted = json!({ "token": "x", "disabled": true, "quota": { "day": 5, "hour": 2 } });
    assert_eq!(place.json(&["credential", "get", "a", "--reveal"]), wanted);

    let (revision, ended) = (
        place.ok(&["credential", "get", "a", "--revision"]),
        place.fed(r#"{"none":null}"#, &["credential", "patch", "a", "-"]),
    );
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert_eq!(place.ok(&["credential", "get", "a", "--revision"]), revision, "nothing was written");

    assert_eq!(place.fails_as(1, &["credential", "patch", "b", "{}"]), "not_found");
    assert_eq!(place.fails_as(2, &["credential", "patch", "a", "[\"SECRET\"]"]), "invalid_value");
    assert_eq!(place.ok(&["credential", "list"]), "a\n", "no credential is made");
}

#[test]
fn hidden_values_can_not_be_stored_by_mistake() {
    let place = Place::new();
    place.ok(&["credential", "set", "a", r#"{"access_token":"ya29"}"#]);
    let hidden = place.ok(&["credential", "get", "a"]);
    assert_eq!(place.fed(&hidden, &["credential", "set", "a", "-"]).code, Some(2));
}

#[test]
fn configuration() {
    let place = Place::new();
    for (key, value) in [("s", "\"text\""), ("n", "-5"), ("null", "null"), ("big", "18446744073709551615")] {
        assert_eq!(place.ok(&["config", "set", key, value]), "");
        assert_eq!(place.ok(&["config", "get", key]), format!("{value}\n"));
    }
    assert_eq!(place.ok(&["config", "list"]), "big\nn\nnull\ns\n");
    assert_eq!(
        place.ok(&["config", "list", "--reveal"]),
        "big\t18446744073709551615\nn\t-5\nnull\tnull\ns\t\"text\"\n"
    );
    assert_eq!(place.ok(&["config", "delete", "s"]), "");
    assert_eq!(place.fails(1, &["config", "get", "s"]), "error: no config has this key\n  key: s\n");
}

#[test]
fn set_accepts_the_output_of_get() {
    let place = Place::new();
    let value = json!({ "text": "a\u{9b}b\u{7f}\n团", "float": 1e300, "list": [[], {}] });
    place.ok(&["config", "set", "a", &value.to_string()]);
    let printed = place.ok(&["config", "get", "a"]);
    assert!(!printed.contains(['\u{9b}', '\u{7f}']), "control characters: {printed:?}");
    assert_eq!(place.fed(&printed, &["config", "set", "b", "-"]).code, Some(0));
    assert_eq!(place.json(&["config", "get", "b"]), value);
}

#[test]
fn usage() {
    let place = Place::new();
    assert_eq!(place.ok(&["usage", "increment", "k", "requests", "-5"]), "-5\n");
    assert_eq!(place.ok(&["usage", "increment", "k", "requests", "12"]), "7\n");
    assert_eq!(
        place.ok(&["usage", "increment", "k", "errors", "-9223372036854775808"]),
        "-9223372036854775808\n"
    );
    assert_eq!(place.ok(&["usage", "increment", "j", "requests", "0"]), "0\n");
    assert_eq!(place.ok(&["usage", "get", "k"]), "errors\t-9223372036854775808\nrequests\t7\n");
    assert_eq!(
        place.ok(&["usage", "list"]),
        "j\trequests\t0\nk\terrors\t-9223372036854775808\nk\trequests\t7\n"
    );
    assert_eq!(place.fails_as(1, &["usage", "increment", "k", "errors", "-1"]), "overflow");
    assert_eq!(place.fails_as(2, &["usage", "increment", "k", "errors", "many"]), "usage");
    assert_eq!(place.fails_as(2, &["usage", "increment", "k", "errors", "9223372036854775808"]), "usage");
    assert_eq!(place.ok(&["usage", "reset", "k"]), "");
    assert_eq!(place.fails(1, &["usage", "reset", "k"]), "error: no usage record has this key\n  key: k\n");
}

#[test]
fn every_command_prints_one_document() {
    let place = Place::new();
    let done = json!({ "ok": true });
    assert_eq!(place.json(&["credential", "set", "a", r#"{"t":"x"}"#]), done);
    assert_eq!(place.json(&["credential", "get", "a"]), json!({ "t": "<hidden>" }));
    assert_eq!(place.json(&["credential", "get", "a", "--reveal"]), json!({ "t": "x" }));
    assert_eq!(place.json(&["credential", "list"]), json!(["a"]));
    assert_eq!(place.json(&["credential", "delete", "a"]), done);
    assert_eq!(place.json(&["config", "set", "c", "[1]"]), done);
    assert_eq!(place.json(&["config", "get", "c"]), json!([1]));
    assert_eq!(place.json(&["config", "list"]), json!(["c"]));
    assert_eq!(place.json(&["config", "list", "--reveal"]), json!({ "c": [1] }));
    assert_eq!(place.json(&["config", "delete", "c"]), done);
    assert_eq!(place.json(&["usage", "increment", "u", "f", "3"]), json!({ "total": 3 }));
    assert_eq!(place.json(&["usage", "get", "u"]), json!({ "f": 3 }));
    assert_eq!(place.json(&["usage", "list"]), json!({ "u": { "f": 3 } }));

    let ping = place.json(&["ping"]);
    assert_eq!((&ping["ok"], &ping["backend"]), (&json!(true), &json!("file")));
    assert!(ping["latency_ms"].as_f64().unwrap() > 0.0);
    let stats = place.json(&["stats"]);
    assert_eq!((&stats["backend"], &stats["usage_record_count"]), (&json!("file"), &json!(1)));
    let doctor = place.json(&["doctor"]);
    assert_eq!((&doctor["connection"]["ok"], &doctor["warnings"]), (&json!(true), &json!([])));
    assert!(
        doctor["latency_ms"]["median"].as_f64().unwrap() <= doctor["latency_ms"]["slowest"].as_f64().unwrap()
    );
    for fact in ["tls", "topology", "durability", "format_version"] {
        assert!(!doctor["facts"][fact].is_null(), "{fact}");
    }

    assert_eq!(place.json(&["usage", "reset", "u"]), done);
    assert_eq!(place.json(&["--url", "memory:", "cache", "set", "k", "v", "--ttl", "1m"]), done);
}

#[test]
fn errors_are_documents_too() {
    let place = Place::new();
    assert_eq!(place.fails_as(5, &["ping"]), "not_found");
    place.ok(&["config", "set", "c", "1"]);
    assert_eq!(place.fails_as(1, &["config", "get", "x"]), "not_found");
    assert_eq!(place.fails_as(2, &["config", "get", ""]), "invalid_key");
    assert_eq!(place.fails_as(2, &["config", "set", "c", "text"]), "invalid_value");
    assert_eq!(place.fails_as(2, &["config", "set", "c", "@nowhere"]), "input");
    assert_eq!(place.fails_as(2, &["config", "gte", "c"]), "usage");
    assert_eq!(place.fails_as(2, &["config", "get"]), "usage");
    assert_eq!(place.fails_as(2, &["config"]), "usage");
    assert_eq!(place.fails_as(6, &["cache", "get", "k"]), "unsupported");

    let error = place.fails(5, &["--url", "file:/dev/null/x", "config", "set", "c", "1", "--output", "json"]);
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["error"]["code"], "os error 20", "{error}");

    // The key of the record that an error is about.
    let keyed = |line: &[&str]| {
        let error: Value =
            serde_json::from_str(&place.run(&[&["--output=json"], line].concat()).err).unwrap();
        error["error"]["key"].clone()
    };
    assert_eq!(keyed(&["config", "get", "x y"]), "x y");
    place.ok(&["usage", "increment", "u", "f", "9223372036854775807"]);
    assert_eq!(keyed(&["usage", "increment", "u", "f", "1"]), "u");
    assert_eq!(keyed(&["config", "get", ""]), Value::Null);

    // `--output json` may be anywhere on the line, but not after `--`.
    assert!(place.fails(2, &["config", "gte", "--output", "json"]).starts_with('{'));
    assert!(place.fails(2, &["config", "get", "a", "--", "--output=json"]).starts_with("error: "));
}

#[test]
fn options_may_be_anywhere() {
    let place = Place::new();
    let url = place.url();
    let run = |line: &[&str]| ended(bare(line).output().unwrap());
    assert_eq!(run(&["config", "set", "--url", &url, "c", "1"]).code, Some(0));
    for line in [
        ["--url", &url, "--output", "json", "config", "list"],
        ["config", "--url", &url, "list", "--output", "json"],
        ["config", "list", "--output", "json", "--url", &url],
        ["--output", "json", "config", "list", "--url", &url],
    ] {
        let ended = run(&line);
        assert_eq!((ended.code, ended.out.as_str()), (Some(0), "[\"c\"]\n"), "{line:?}: {}", ended.err);
    }
    // The command line has priority over the environment.
    assert_eq!(place.ok(&["config", "list", "--url", "memory:"]), "");
}

#[test]
fn keys_may_begin_with_a_dash() {
    let place = Place::new();
    place.ok(&["credential", "set", "--", "-rf", "{}"]);
    place.ok(&["credential", "set", "--", "--reveal", "{}"]);
    assert_eq!(place.ok(&["credential", "list"]), "--reveal\n-rf\n");
    assert_eq!(place.ok(&["credential", "get", "--reveal", "--", "-rf"]), "{}\n");
    assert!(place.fails(2, &["credential", "get", "-rf"]).contains("-- -r"));
    assert_eq!(place.ok(&["usage", "increment", "--", "-1", "-2", "-3"]), "-3\n");
    assert_eq!(place.ok(&["credential", "delete", "--", "-rf"]), "");
}

#[test]
fn keys_are_printed_unchanged() {
    let place = Place::new();
    let keys = ["../x", "a b", "%41", "\\n", "团"];
    for key in keys {
        place.ok(&["credential", "set", key, "{}"]);
    }
    assert_eq!(place.ok(&["credential", "list"]), "%41\n../x\n\\n\na b\n团\n");
}

#[test]
fn values_from_files_and_stdin() {
    let place = Place::new();
    fs::write(place.dir.path().join("a.json"), "{\"from\": \"file\"}\n").unwrap();
    place.ok(&["credential", "set", "a", "@a.json"]);
    assert_eq!(place.json(&["credential", "get", "a", "--reveal"]), json!({ "from": "file" }));

    assert_eq!(place.fed("{\"from\": \"stdin\"}\n", &["credential", "set", "a", "-"]).code, Some(0));
    assert_eq!(place.json(&["credential", "get", "a", "--reveal"]), json!({ "from": "stdin" }));

    let ended = place.fed("", &["credential", "set", "a", "-"]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(2), "error: the text is empty, at line 1 column 0\n"));
    let missing = place.fails(2, &["credential", "set", "a", "@b.json"]);
    assert!(missing.starts_with("error: the file `b.json` can't be read\n  caused by: "), "{missing}");
}

#[test]
fn large_values() {
    let place = Place::new();
    let fits = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    assert_eq!(place.fed(&fits, &["config", "set", "a", "-"]).code, Some(0));
    assert_eq!(place.ok(&["config", "get", "a"]), format!("{fits}\n"));

    let over = format!("\"{}\"", "x".repeat(1 << 20));
    assert_eq!(place.fed(&over, &["config", "set", "a", "-"]).code, Some(2));
    // A long text of a value that fits.
    let wide = format!("{}1", " ".repeat(2 << 20));
    assert_eq!(place.fed(&wide, &["config", "set", "a", "-"]).code, Some(0));

    // It stops reading endless input.
    let file = fs::File::open("/dev/zero").unwrap();
    let ended = ended(place.command(&["config", "set", "a", "-"]).stdin(file).output().unwrap());
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("at most 1048576 bytes"), "{}", ended.err);
}

#[test]
fn only_set_and_increment_create_a_store() {
    let place = Place::new();
    for line in [
        &["ping"][..],
        &["stats"],
        &["doctor"],
        &["credential", "get", "a"],
        &["credential", "delete", "a"],
        &["credential", "list"],
        &["config", "get", "a"],
        &["config", "delete", "a"],
        &["config", "list"],
        &["usage", "get", "a"],
        &["config", "get", "--many", "a"],
        &["usage", "reset", "a"],
        &["usage", "reset", "--prefix", "a"],
        &["usage", "list"],
        &["usage", "list", "--limit", "1"],
    ] {
        let err = place.fails(5, line);
        assert!(err.contains("there is no store") && err.contains("hint: check the URL"), "{line:?}: {err}");
        assert!(!place.path().exists(), "{line:?}");
    }
    for line in [
        &["credential", "set", "a", "{}"][..],
        &["config", "set", "a", "{}"],
        &["config", "set", "--many", "{}"],
        &["usage", "increment", "a", "f", "1"],
        &["usage", "increment", "a", "f", "1", "--within", "1"],
    ] {
        let place = Place::new();
        let url = format!("{}?create=false", place.url());
        place.fails(5, &[&["--url", &url], line].concat());
        assert!(!place.path().exists(), "{line:?}");
        place.ok(line);
        assert!(place.path().exists(), "{line:?}");
    }
}

#[tokio::test]
async fn a_store_that_is_not_shared_is_busy() {
    let place = Place::new();
    let holder = Storage::<File>::open(format!("{}?shared=exclusive", place.url())).await.unwrap();
    let err = place.fails(5, &["credential", "list"]);
    assert!(err.contains("already open") && err.contains("hint: "), "{err}");
    assert_eq!(place.fails_as(5, &["credential", "set", "a", "{}"]), "busy");
    holder.close().await.unwrap();
    assert_eq!(place.ok(&["credential", "list"]), "");
}

#[test]
fn the_cache() {
    let place = Place::new();
    let memory = |line: &[&'static str]| [&["--url", "memory:", "cache"], line].concat();
    assert_eq!(place.ok(&memory(&["set", "k", "v", "--ttl", "90s"])), "");
    assert_eq!(place.ok(&memory(&["set", "k", "-5", "--ttl", "50ms"])), "");
    assert_eq!(
        place.fails(1, &memory(&["get", "k"])),
        "error: the cache holds no value for this key\n  key: k\n"
    );
    assert_eq!(place.fails_as(1, &memory(&["delete", "k"])), "not_found");
    assert_eq!(place.fails_as(2, &memory(&["set", "k", "v", "--ttl", "0s"])), "invalid_value");
    assert_eq!(place.fails_as(2, &memory(&["set", "k", "v", "--ttl", "soon"])), "usage");
    assert!(place.fails(2, &memory(&["set", "k", "v"])).contains("--ttl"));
    // Each command has a `memory:` store of its own, so this shows that the value is stored: what a second
    // one finds is tested with Redis.
    assert_eq!(place.ok(&memory(&["set", "k", "v", "--ttl", "90s", "--if-absent"])), "");
}

#[test]
fn reports_as_text() {
    let place = Place::new();
    place.ok(&["credential", "set", "a", "{}"]);
    assert!(place.ok(&["ping"]).starts_with("file  ok, "));
    let stats = place.ok(&["stats"]);
    for row in [["backend", "file"], ["credentials", "1"]] {
        assert!(stats.lines().any(|line| line.split_whitespace().eq(row)), "{row:?}: {stats}");
    }
    let doctor = place.ok(&["doctor"]);
    for row in ["connection", "latency", "TLS", "durability", "topology", "format version", "warnings"] {
        assert!(doctor.lines().any(|line| line.starts_with(row)), "{row}: {doctor}");
    }
    assert!(place.ok(&["doctor", "--url", "memory:"]).contains("warning        nothing is saved"));
}

#[test]
fn verbose_logs_operations() {
    let place = Place::new();
    let ended = place.run(&["-v", "credential", "set", "an-id", r#"{"access_token":"ya29"}"#]);
    let operations: Vec<&str> = ended.err.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(operations, ["open", "set_credential", "close"]);
    assert!(!ended.err.contains("an-id") && !ended.err.contains("ya29"));
    let ended = place.run(&["credential", "get", "x", "--verbose"]);
    assert!(ended.err.contains("\nget_credential: not_found after "), "{}", ended.err);
}

#[test]
fn secrets_stay_secret() {
    let place = Place::new();
    for line in [
        &["credential", "set", "a", "{\"t\": SECRET}"][..],
        &["credential", "set", "a", "[\"SECRET\"]"],
        &["credential", "patch", "a", "[\"SECRET\"]"],
        &["config", "set", "--many", "{\"SECRET\": {\"a\": 1, \"a\": 2}}"],
        &["usage", "list", "--limit", "SECRET"],
        &["usage", "increment", "k", "f", "1", "--within", "SECRET"],
        &["credential", "set", "a", "{t:", "SECRET}"],
        &["credential", "set", "a", "{}", "secret"],
        &["credential", "{\"t\":\"SECRET\"}"],
        &["credential", "get", "SECRET\n"],
        &["credential", "get", "--SECRET-1"],
        &["credential", "get", "a", "--reveal=SECRET"],
        &["usage", "increment", "k", "f", "SECRET"],
        &["config", "set", "a", "SECRET"],
        &["ping", "--url", "unknown://:SECRET@host"],
        &["ping", "--url", "redis://:SECRET@host/SECRET"],
        &["ping", "--url", "redis://:SECRET@host?secret=SECRET"],
        &["ping", "--url", "SECRET@host"],
        &["ping", "--url", "file:x?SECRET=1"],
        &["ping", "--url", "memory:SECRET"],
    ] {
        for output in ["human", "json"] {
            let err = place.fails(2, &[&["--output", output], line].concat());
            assert!(!err.is_empty() && !err.to_lowercase().contains("secret"), "{line:?}: {err}");
        }
    }
    for output in ["human", "json"] {
        let line = ["--output", output, "ping", "--url", "redis://user:SECRET@127.0.0.1:1"];
        let err = place.fails(5, &line);
        assert!(!err.is_empty() && !err.contains("SECRET"), "{err}");
    }
    let help = bare(&["--help"]).env("STORAGE_URL", "redis://:SECRET@host").output().unwrap();
    assert!(!ended(help).out.contains("SECRET"));
}

#[tokio::test]
async fn a_reader_may_close_the_pipe() {
    let place = Place::new();
    let storage = Storage::<File>::open(&*place.url()).await.unwrap();
    let many: Vec<(Key, Credential)> = (0..2000)
        .map(|i| (Key::new(&format!("{i:0200}")).unwrap(), Credential::new(serde_json::Map::new()).unwrap()))
        .collect();
    assert!(storage.set_credentials(&many).await.unwrap().is_complete());
    storage.close().await.unwrap();

    // More than a pipe holds, so that it can't be written before the reader closes it.
    for output in ["human", "json"] {
        let mut command = place.command(&["credential", "list", "--output", output]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = ended(output_of(child));
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    }

    let mut child = place.command(&["credential", "get", "x"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(output_of(child).status.code(), Some(1));
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_can_not_be_written_is_an_error() {
    let place = Place::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = place.command(&["usage", "increment", "k", "f", "1", "--output", "json"]);
    let ended = ended(command.stdout(full).output().unwrap());
    assert_eq!(ended.code, Some(1));
    let error: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!((&error["error"]["kind"], &error["error"]["outcome"]), (&json!("output"), &json!("applied")));
    assert_eq!(place.ok(&["usage", "get", "k"]), "f\t1\n");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_command() {
    use std::os::unix::process::ExitStatusExt;

    let place = Place::new();
    let mut command = place.command(&["credential", "set", "a", "-"]);
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    // Before that it may ignore the signal.
    let name = format!("/proc/{}/comm", child.id());
    servers::until("it runs", || {
        cfg!(not(target_os = "linux")) || fs::read_to_string(&name).unwrap() == "storage\n"
    });
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    // Shells call this 130.
    assert_eq!(output_of(child).status.signal(), Some(2));
    assert!(!place.path().exists());
}

#[test]
fn help_has_examples() {
    let help = |line: &[&str]| ended(bare(line).output().unwrap());
    let all = help(&["--help"]);
    assert_eq!(all.code, Some(0));
    for part in ["file:./data", "Exit codes:", "--reveal", "STORAGE_URL"] {
        assert!(all.out.contains(part), "{part}");
    }
    for command in [
        "ping",
        "stats",
        "doctor",
        "credential set",
        "credential get",
        "credential patch",
        "credential delete",
        "credential list",
        "config set",
        "config get",
        "config delete",
        "config list",
        "usage increment",
        "usage get",
        "usage reset",
        "usage list",
        "cache set",
        "cache get",
        "cache delete",
        "lease run",
        "lease list",
        "watch",
        "export",
        "import",
        "inspect",
        "completions",
        "man",
    ] {
        let line: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let ended = help(&line);
        assert_eq!(ended.code, Some(0), "{command}");
        assert!(ended.out.contains(&format!("\n  storage {command}")), "no example: {}", ended.out);
    }
    for line in [&["help", "--help"][..], &["help", "-h"], &["plan", "help", "--help"]] {
        let asked = help(line);
        assert_eq!((asked.code, asked.err.as_str()), (Some(0), ""), "{line:?}");
        assert!(asked.out.contains("Usage: storage"), "{}", asked.out);
    }
    assert_eq!(help(&["--nothing"]).code, Some(2));
    let none = help(&[]);
    assert_eq!((none.code, none.out.as_str()), (Some(2), ""));
    assert!(none.err.contains("Usage: storage"));
    assert!(help(&["--version"]).out.starts_with("storage "));
}

#[test]
fn an_open_umask_does_not_expose_the_store() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_storage");
    let script = "umask 000; \"$0\" config set a 1 && \"$0\" credential set b '{}'";
    let mut command = Command::new("sh");
    command.args(["-c", script, program]).env("STORAGE_URL", place.url());
    assert!(command.status().unwrap().success());
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(place.path()), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(place.path()).unwrap() {
        assert_eq!(mode(entry.unwrap().path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 2, "the store and its reserve");
}

/// Runs as user 65534 if this is root, because permissions do not apply to root.
#[test]
fn denied_access_is_reported() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};

    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    let program = place.dir.path().join("storage");
    copy_command(&program);
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let is_root = is_root();
    let mut command = Command::new(&program);
    command.args(["config", "get", "a"]).env("STORAGE_URL", place.url());
    if is_root {
        command.uid(65534);
    } else {
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let ended = ended(command.output().unwrap());
    if !is_root {
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert_eq!((ended.code, ended.out.as_str()), (Some(5), ""), "{}", ended.err);
    assert!(ended.err.contains("store can't be opened\n  caused by: Permission denied"), "{}", ended.err);
}
