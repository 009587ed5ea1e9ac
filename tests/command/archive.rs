//! `storage export`, `import` and `inspect`.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{Ended, Place, bare, copy_command, ended, servers::output_of};

impl Place {
    /// A store with a record of every kind, and two counters.
    fn filled() -> Self {
        let place = Self::new();
        place.ok(&["credential", "set", "alice", r#"{"access_token":"ya29.secret"}"#]);
        place.ok(&["config", "set", "retries", "3"]);
        place.ok(&["usage", "increment", "sk-1", "requests", "42"]);
        place.ok(&["usage", "increment", "sk-1", "errors", "-1"]);
        place
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn write_text(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// Every file beside the store.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !["store", "other", "home", "state"].contains(&name.as_str()));
        names.sort_unstable();
        names
    }
}

const OTHER: [&str; 2] = ["--url", "file:./other"];

fn into_other(line: &[&str]) -> Vec<String> {
    OTHER.iter().chain(line).map(|word| (*word).to_owned()).collect()
}

impl Place {
    fn run_in_other(&self, line: &[&str]) -> Ended {
        let line = into_other(line);
        self.run(&line.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn ok_in_other(&self, line: &[&str]) -> String {
        let ended = self.run_in_other(line);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{line:?}");
        ended.out
    }

    #[track_caller]
    fn fails_in_other(&self, code: i32, line: &[&str]) -> String {
        let ended = self.run_in_other(line);
        assert_eq!((ended.code, ended.out.as_str()), (Some(code), ""), "{line:?}: {}", ended.err);
        ended.err
    }

    fn has_other(&self) -> bool {
        self.file("other").exists()
    }
}

#[test]
fn from_store_to_store() {
    let place = Place::filled();
    let said = place.json(&["export", "a.ndjson"]);
    assert_eq!((&said["credentials"], &said["configs"], &said["usage"]), (&json!(1), &json!(1), &json!(2)));
    assert_eq!((&said["snapshot"], &said["source"]), (&json!(true), &json!("file")));
    assert_eq!(place.json(&["inspect", "a.ndjson"])["digest"], said["digest"]);

    let report = place.ok_in_other(&["import", "a.ndjson", "--verify"]);
    assert!(report.contains("the file is complete: it was checked before the import"), "{report}");
    assert!(report.contains(said["digest"].as_str().unwrap()), "{report}");
    assert_eq!(
        place.ok_in_other(&["credential", "get", "alice", "--reveal"]),
        place.ok(&["credential", "get", "alice", "--reveal"])
    );
    assert_eq!(place.ok_in_other(&["usage", "list"]), place.ok(&["usage", "list"]));

    place.ok_in_other(&["export", "b.ndjson"]);
    let records = |text: String| text.lines().skip(1).take(4).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(records(place.text("a.ndjson")), records(place.text("b.ndjson")));
    let again: Value =
        serde_json::from_str(&place.ok_in_other(&["--output", "json", "import", "a.ndjson"])).unwrap();
    assert_eq!((&again["total"]["written"], &again["verified_first"]), (&json!(0), &json!(true)));
}

#[test]
fn an_export_is_its_owners_and_complete() {
    let place = Place::filled();
    let mode = |name: &str| fs::metadata(place.file(name)).unwrap().permissions().mode() & 0o777;
    place.write_text("a", "before");
    fs::set_permissions(place.file("a"), fs::Permissions::from_mode(0o644)).unwrap();
    let script = "umask 000; \"$0\" export a; \"$0\" export --format go b";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_storage")]).env("STORAGE_URL", place.url());
    assert!(command.current_dir(place.dir.path()).stdout(Stdio::null()).status().unwrap().success());
    assert_eq!((mode("a"), mode("b")), (0o600, 0o600));
    assert_eq!(place.files(), ["a", "b"], "nothing else is left");
    assert!(place.text("a").starts_with("{\"format\""));

    // A failed export leaves the existing file.
    place.write_text("a", "before");
    place.fails_in_other(5, &["export", "a"]);
    assert_eq!((place.text("a").as_str(), place.files()), ("before", vec!["a".into(), "b".into()]));

    // A link is neither replaced nor followed; a device and a directory are unchanged.
    symlink(place.file("b"), place.file("link")).unwrap();
    let before = place.text("b");
    let err = place.fails(1, &["export", "link"]);
    assert!(
        err.contains("`link` can't be written\n  caused by: this is a symbolic link; name the file"),
        "{err}"
    );
    assert_eq!(place.text("b"), before);
    assert!(fs::symlink_metadata(place.file("link")).unwrap().is_symlink());
    for other in ["/dev/null", "."] {
        assert!(place.fails(1, &["export", other]).contains("can't be written"));
    }
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

/// The directory can be written but not read, so it can't be synced.
#[test]
fn an_export_that_can_not_be_durable_is_refused() {
    let place = Place::new();
    let folder = place.file("in");
    fs::create_dir(&folder).unwrap();
    let program = place.file("program");
    copy_command(&program);
    let mut command = Command::new(&program);
    command.args(["--url", "memory:", "export", "in/a"]).current_dir(place.dir.path());
    // Root can read everything.
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        for path in [place.dir.path(), &folder] {
            chown(path, Some(65534), Some(65534)).unwrap();
        }
        command.uid(65534);
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o333)).unwrap();
    let refused = ended(command.output().unwrap());
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(
        refused.err.contains("`in/a` can't be written\n  caused by: Permission denied"),
        "{}",
        refused.err
    );
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(ended(command.output().unwrap()).code, Some(0));
}

/// Interrupted while it waits for a full pipe.
#[test]
fn an_interrupted_export_has_no_end() {
    let place = Place::filled();
    let value = format!("\"{}\"", "x".repeat(1_000_000));
    for name in ["a", "b", "c"] {
        assert_eq!(place.fed(&value, &["config", "set", name, "-"]).code, Some(0));
    }
    let mut held =
        place.command(&["export", "-"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // It writes.
    std::io::Read::read_exact(held.stdout.as_mut().unwrap(), &mut [0; 10]).unwrap();
    let killed = Command::new("kill").args(["-INT", &held.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut held.stdout.take().unwrap(), &mut rest).unwrap();
    assert_eq!(output_of(held).status.code(), Some(130));
    assert!(!String::from_utf8(rest).unwrap().contains("{\"end\":"), "an interrupted export has no end");
}

#[test]
fn to_stdout_and_from_stdin() {
    let place = Place::filled();
    let exported = place.ok(&["export"]);
    assert_eq!(place.ok(&["--output", "json", "export", "-"]), exported);
    assert_eq!(exported.lines().count(), 6);

    // A pipe can't be read twice.
    let piped = |line: &[&str]| {
        let line = into_other(line);
        place.fed(&exported, &line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = piped(&["import"]);
    assert_eq!((refused.code, place.has_other()), (Some(2), false));
    assert!(refused.err.contains("add --no-verify-first"), "{}", refused.err);
    for more in [&["--verify"][..], &["--resume"], &["--checkpoint", "place"]] {
        let refused = piped(&[&["import", "--no-verify-first"], more].concat());
        assert_eq!((refused.code, place.has_other()), (Some(2), false), "{}", refused.err);
        assert!(refused.err.contains("a pipe can be read only once"), "{}", refused.err);
    }
    let taken = piped(&["import", "-", "--no-verify-first"]);
    assert_eq!(taken.code, Some(0), "{}", taken.err);
    assert!(taken.out.contains("the file is complete: it was checked during the import"), "{}", taken.out);
    assert_eq!(place.fed(&exported, &["inspect"]).out, place.fed(&exported, &["inspect", "-"]).out);

    // A file on stdin can.
    place.write_text("a", &exported);
    let mut command = place.command(&["--url", "file:./third", "import"]);
    let on_stdin = ended(command.stdin(fs::File::open(place.file("a")).unwrap()).output().unwrap());
    assert_eq!(on_stdin.code, Some(0), "{}", on_stdin.err);
    assert!(on_stdin.out.contains("checked before the import"));
}

#[test]
fn a_damaged_file_is_refused_before_anything_is_stored() {
    let place = Place::filled();
    let whole = place.ok(&["export"]);
    for (damaged, line) in [
        (whole[..whole.len() - 1].to_owned(), "line 6 is cut off"),
        (whole.lines().take(4).map(|line| format!("{line}\n")).collect(), "line 5 is missing"),
        (whole.replace(".secret", ".sEcret"), "line 6 has a digest that does not match the records"),
        (
            whole.replace("\"source\":\"file\"", "\"source\":\"fill\""),
            "line 6 has a digest that does not match line 1",
        ),
        (whole.replace('\n', "\r\n"), "line 1 is not"),
        (format!("{whole}\n"), "line 7 comes after the end"),
        (whole.replace("sk-1", "sk-\u{1}"), "line 4 is not JSON"),
        (String::new(), "line 1 is missing"),
        ("hello\n".to_owned(), "line 1 is not the first line of an export"),
    ] {
        place.write_text("a", &damaged);
        let err = place.fails_in_other(1, &["import", "a"]);
        assert!(
            err.starts_with("error: the file `a` is damaged, or is not an export\n  caused by: "),
            "{err}"
        );
        assert!(err.contains(line), "{line}: {err}");
        assert_eq!(err, place.fails(1, &["inspect", "a"]));
        assert!(!place.has_other(), "{line}: something was stored");
    }
    assert_eq!(place.fails_as(1, &["inspect", "a"]), "corrupt");

    // From a pipe, the damage is detected at the end.
    let line = into_other(&["import", "--no-verify-first"]);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let late = place.fed(&whole.replace(".secret", ".sEcret"), &line);
    assert_eq!(late.code, Some(4), "{}", late.err);
    assert!(
        late.err.contains("line 6 has a digest") && !late.out.contains("is complete"),
        "{} {}",
        late.out,
        late.err
    );
    assert!(late.err.contains("4 records were stored before"), "{}", late.err);

    // A conflict is reported as for a file.
    place.ok_in_other(&["config", "set", "retries", "7"]);
    let conflict = place.fed(&whole, &line);
    assert_eq!(conflict.code, Some(1), "{}", conflict.err);
    assert!(conflict.err.contains("--on-conflict skip"), "{}", conflict.err);
}

/// An unchecked file is identified by more than its name.
#[test]
fn a_checkpoint_of_one_file_is_not_used_for_another() {
    let place = Place::filled();
    let whole = place.ok(&["export"]);
    // All records are written before the damage is detected.
    place.write_text("a", &whole.replace(".secret", ".sEcret"));
    let line = ["import", "a", "--no-verify-first", "--on-conflict", "overwrite"];
    let damaged = place.run_in_other(&line);
    assert_eq!(damaged.code, Some(4), "{}", damaged.err);
    place.write_text("a", &whole);
    let mended = place.run_in_other(&[&line[..], &["--resume"]].concat());
    assert_eq!(mended.code, Some(0), "{}", mended.err);
    assert_eq!(
        place.ok_in_other(&["credential", "get", "alice", "--reveal"]),
        place.ok(&["credential", "get", "alice", "--reveal"])
    );
    let again = place.run_in_other(&[&line[..], &["--checkpoint", "place"]].concat());
    assert_eq!(again.code, Some(0), "{}", again.err);
}

#[test]
fn compressed_files_are_recognized() {
    let place = Place::new();
    for (program, begin) in [
        ("gzip", &b"\x1f\x8b\x08\0"[..]),
        ("zstd", b"\x28\xb5\x2f\xfd\0"),
        ("xz", b"\xfd7zXZ\0\0"),
        ("bzip2", b"BZh91AY"),
    ] {
        fs::write(place.file("a"), begin).unwrap();
        for command in ["inspect", "import"] {
            let err = place.fails(2, &[command, "a"]);
            let wanted =
                format!("error: the file `a` is compressed\n  hint: `{program} -d < FILE | storage inspect`");
            assert!(err.starts_with(&wanted), "{err}");
        }
    }
}

#[test]
fn counts_use_the_singular() {
    let place = Place::new();
    place.ok(&["usage", "increment", "sk-1", "requests", "1"]);
    assert!(place.ok(&["export", "a"]).contains("1 counter of 1 key\n"));
    place.ok(&["export", "--format", "go", "b"]);
    assert!(place.ok(&["inspect", "b"]).contains("1 counter\n"));
}

#[test]
fn a_later_format_is_reported() {
    let place = Place::filled();
    let whole = place.ok(&["export"]);
    place.write_text("a", &whole.replace("\"version\":1", "\"version\":2"));
    let err = place.fails_in_other(1, &["import", "a"]);
    assert!(err.contains("line 1: the export has format version 2") && err.contains("hint: "), "{err}");
    assert_eq!(place.fails_as(1, &["import", "a"]), "unsupported");
}

#[test]
fn records_can_be_selected() {
    let place = Place::filled();
    place.ok(&["config", "set", "models", "[]"]);
    let keys = |text: String| -> Vec<String> {
        let line =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["key"].as_str().map(str::to_owned);
        text.lines().filter_map(line).collect()
    };
    assert_eq!(keys(place.ok(&["export", "--kinds", "configs"])), ["models", "retries"]);
    assert_eq!(keys(place.ok(&["export", "--include", "*e*", "--exclude", "mod*"])), ["alice", "retries"]);
    place.ok(&["export", "a"]);
    place.ok_in_other(&["import", "a", "--kinds", "configs", "--include", "m*"]);
    assert_eq!(place.ok_in_other(&["config", "list"]), "models\n");
    assert_eq!(place.ok_in_other(&["credential", "list"]), "");
}

#[test]
fn conflicts_are_the_operators_choice() {
    let place = Place::filled();
    place.ok(&["export", "a"]);
    place.ok_in_other(&["config", "set", "retries", "7"]);
    let refused = place.run_in_other(&["import", "a"]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert_eq!(place.ok_in_other(&["credential", "list"]), "", "something was stored");
    place.ok_in_other(&["import", "a", "--on-conflict", "skip"]);
    assert_eq!(
        (place.ok_in_other(&["config", "get", "retries"]), place.ok_in_other(&["credential", "list"])),
        ("7\n".into(), "alice\n".into())
    );
    let dry = place.ok_in_other(&["import", "a", "--on-conflict", "overwrite", "--dry-run"]);
    assert!(dry.contains("would write"), "{dry}");
    assert_eq!(place.ok_in_other(&["config", "get", "retries"]), "7\n");
    place.ok_in_other(&["import", "a", "--on-conflict", "overwrite"]);
    assert_eq!(place.ok_in_other(&["config", "get", "retries"]), "3\n");
}

#[test]
fn documents_of_gcli2api_go() {
    let place = Place::filled();
    place.ok(&["export", "--format", "go", "a.json"]);
    let document: Value = place.text("a.json").parse().unwrap();
    assert_eq!(document["credentials"], json!({ "alice": { "access_token": "ya29.secret" } }));
    assert_eq!(document["configs"], json!({ "retries": 3 }));
    assert_eq!(document["usage"], json!({ "sk-1": { "errors": -1, "requests": 42 } }));
    place.ok_in_other(&["import", "a.json"]);
    assert_eq!(place.ok_in_other(&["usage", "list"]), place.ok(&["usage", "list"]));

    // A document that gcli2api-go exported.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/go/export-redis.json");
    let fixture = fixture.to_str().unwrap();
    let said = place.json(&["inspect", fixture]);
    assert_eq!(
        (&said["format"], &said["source"], &said["remarks"]),
        (&json!("go"), &json!("redis"), &json!([]))
    );
    let third = ["--url", "file:./third", "--output", "json", "import", fixture, "--verify"];
    let imported: Value = serde_json::from_str(&place.ok(&third)).unwrap();
    assert_eq!(imported["credentials"]["written"], said["credentials"]);
    assert_eq!((&imported["verify"]["same"], &imported["remarks"]), (&json!(true), &json!([])));

    place.write_text("b.json", r#"{"configs":{"good":1},"usage":{"sk-1":{"f":"many"}}}"#);
    let fourth = ["--url", "file:./fourth", "import", "b.json"];
    let err = place.fails(1, &fourth);
    assert!(
        err.contains("usage/sk-1/f: a count must be a 64-bit integer") && err.contains("--leave-out"),
        "{err}"
    );
    assert!(!place.file("fourth").exists());
    let out = place.ok(&[&fourth[..], &["--leave-out"]].concat());
    assert!(out.contains("left out: usage/sk-1/f"), "{out}");
    assert_eq!(place.ok(&["--url", "file:./fourth", "config", "list"]), "good\n");
}

#[test]
fn missing_files() {
    let place = Place::filled();
    assert_eq!(place.fails_as(2, &["import", "nowhere"]), "input");
    assert_eq!(place.fails_as(2, &["inspect", "nowhere"]), "input");
    assert_eq!(place.fails_as(2, &["import", "."]), "usage");
    assert_eq!(place.fails_as(1, &["export", "nowhere/a"]), "output");
    assert_eq!(place.fails_as(5, &["--url", "file:./other", "export", "a"]), "not_found");
    assert_eq!(place.files(), [""; 0], "something is left");
    // An invalid URL is reported before the file is read.
    assert_eq!(place.fails_as(2, &["--url", "file:./x?wrong=1", "import", "nowhere"]), "invalid_value");
}

#[test]
fn stores_have_names() {
    let place = Place::filled();
    let home = place.file("home");
    let folder = home.join(".config/gateway-storage");
    fs::create_dir_all(&folder).unwrap();
    let stores = folder.join("stores");
    let run = |line: &[&str]| {
        let mut command = bare(line);
        command.env("HOME", &home).env_remove("XDG_CONFIG_HOME").env_remove("STORAGE_CONFIG");
        ended(command.current_dir(place.dir.path()).env("PROD", place.url()).output().unwrap())
    };
    let list = ["config", "list"];
    assert_eq!(run(&list).code, Some(2));
    let unknown = run(&["--url", "prod", "config", "list"]);
    assert_eq!(unknown.code, Some(2));
    assert!(
        unknown.err.contains("no file of named stores") && unknown.err.contains("prod = URL"),
        "{}",
        unknown.err
    );

    fs::write(&stores, format!("# ours\nprod = {0}\ndefault = {0}\n", place.url())).unwrap();
    fs::set_permissions(&stores, fs::Permissions::from_mode(0o640)).unwrap();
    let open = run(&list);
    assert_eq!(open.code, Some(2));
    assert!(open.err.contains("other users can read it") && open.err.contains("chmod 600"), "{}", open.err);
    fs::set_permissions(&stores, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(run(&list).out, "retries\n");
    assert_eq!(run(&["--url", "prod", "config", "list"]).out, "retries\n");
    assert_eq!(run(&["--url", "env:PROD", "config", "list"]).out, "retries\n");
    assert_eq!(run(&["copy", "prod", "file:./other"]).code, Some(0));
    assert_eq!(run(&["verify", "env:PROD", "file:./other"]).code, Some(0));
    assert!(run(&["--url", "dev", "config", "list"]).err.contains("no store is named `dev`"));
    assert!(run(&["--url", "env:NOTHING", "config", "list"]).err.contains("variable `NOTHING` is not set"));

    let mut elsewhere = bare(&["--url", "there", "config", "list"]);
    fs::write(place.file("own"), format!("there = {}\n", place.url())).unwrap();
    fs::set_permissions(place.file("own"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(ended(elsewhere.env("STORAGE_CONFIG", place.file("own")).output().unwrap()).out, "retries\n");
}

#[test]
fn completions_and_pages() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.ok(&["completions", shell]);
        assert!(script.contains("--no-verify-first") || script.contains("no-verify-first"), "{shell}");
    }
    assert!(place.ok(&["man"]).contains(".TH storage 1"));
    place.ok(&["man", "pages"]);
    let page = place.text("pages/storage-export.1");
    assert!(page.contains(".TH storage-export 1") && page.contains("backup.ndjson"), "{page}");
    assert!(place.file("pages/storage-config-set.1").exists());
}

#[test]
fn an_export_does_not_replace_the_store() {
    let place = Place::filled();
    for file in ["store/store.redb", "./store/backup.ndjson", "store"] {
        let err = place.fails(2, &["export", file]);
        assert!(err.contains("in the store's own directory"), "{err}");
    }
    place.ok(&["export", "store.ndjson"]);
    place.ok(&["config", "list"]);
}
