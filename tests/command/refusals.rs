//! Commands that are refused, and their errors.

use std::{fs, process::Stdio};

use serde_json::Value;

use crate::{Place, bare, ended, servers, servers::output_of};

#[test]
fn invalid_urls_are_refused() {
    let run = |line: &[&str]| ended(bare(line).output().unwrap());
    let none = run(&["ping"]);
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("--url file:./data") && none.err.contains("STORAGE_URL"), "{}", none.err);
    assert_eq!(ended(bare(&["ping"]).env("STORAGE_URL", "").output().unwrap()).err, none.err);

    for (url, says) in [
        ("./data", "does not begin with its backend"),
        ("mysql://h", "no backend for `mysql:`"),
        ("file:", "a file URL is"),
        ("file:x?mode=1", "options: cache, create, deadline"),
        ("file:x?deadline=5", "a duration such as `10s`"),
        ("memory:x", "the only memory URL is `memory:`"),
    ] {
        let ended = run(&["ping", "--url", url]);
        assert_eq!(ended.code, Some(2), "{url}");
        assert!(ended.err.contains(says), "{url}: {}", ended.err);
    }
}

#[test]
fn an_unreachable_server_is_named() {
    let place = Place::new();
    let refused = "can't be reached\n  caused by: Connection refused (os error 111)\n";
    for (url, says) in [
        (
            "redis://u:SECRET@127.0.0.1:1/0?prefix=a:",
            &*format!("redis://127.0.0.1:1/0: the Redis server at 127.0.0.1:1 {refused}"),
        ),
        (
            "postgres://u:SECRET@127.0.0.1:1/db",
            &*format!("postgres://127.0.0.1:1/db: the PostgreSQL server at 127.0.0.1:1 {refused}"),
        ),
        (
            "redis://u:SECRET@nowhere.invalid",
            "redis://nowhere.invalid: the name of the Redis server at nowhere.invalid:6379 can't be resolved\n",
        ),
        (
            "postgres://u:SECRET@nowhere.invalid/db",
            "postgres://nowhere.invalid/db: the name of the PostgreSQL server at nowhere.invalid:5432 can't be resolved\n",
        ),
        (
            "mongodb://u:SECRET@127.0.0.1:1/db?serverSelectionTimeoutMS=500",
            &*format!("mongodb://127.0.0.1:1/db: the MongoDB server at 127.0.0.1:1 {refused}"),
        ),
    ] {
        let err = place.fails(5, &["ping", "--url", url]);
        assert!(err.starts_with(&format!("error: {says}")) && !err.contains("SECRET"), "{url}: {err}");
    }
    let url = servers::postgres();
    let err = place.fails(5, &["ping", "--url", &url]);
    assert!(err.contains("`pull` create a store") && err.contains("`schema up`"), "{err}");
    let elsewhere = url.replacen("/postgres?", "/there_is_no_such_database?", 1);
    assert_ne!(url, elsewhere);
    let err = place.fails(5, &["ping", "--url", &elsewhere]);
    assert!(err.contains("no database of this name") && err.contains("check the URL"), "{err}");
    let err = place.fails(5, &["ping", "--output", "json"]);
    let error: Value = serde_json::from_str(&err).unwrap();
    assert!(error["error"]["hint"].as_str().unwrap().starts_with("check the URL"), "{err}");
}

#[test]
fn a_url_is_refused_by_commands_without_one() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    let url = place.url();
    for line in [
        &["copy", &url, "file:./copy"][..],
        &["verify", &url, &url],
        &["adopt", &url, "file:./copy"],
        &["inspect", "x"],
        &["completions", "bash"],
        &["man"],
    ] {
        let err = place.fails(2, &[&["--url", &url], line].concat());
        assert!(err.starts_with(&format!("error: `{}` takes no --url: it ", line[0])), "{err}");
        assert_eq!(place.fails(2, &[line, &["--url", &url]].concat()), err);
        assert!(!place.ok(&[line[0], "--help"]).contains("--url <URL>"), "{line:?}");
    }
    assert!(!place.dir.path().join("copy").exists());
    let help = place.ok(&["import", "--help"]);
    let (own, global) = help.split_once("\nGlobal options:\n").expect(&help);
    assert!(own.contains("--dry-run") && !own.contains("--verbose"), "{help}");
    assert!(
        global.contains("--url <URL>") && global.contains("[env: STORAGE_URL, STORAGE_URL_FILE]"),
        "{help}"
    );
    // The environment's URL is not on the command line.
    let err = place.fails(2, &["config", "get"]);
    assert!(err.contains("Usage: storage config get") && !err.contains("--url"), "{err}");
}

#[test]
fn wrong_json_gets_a_hint() {
    let place = Place::new();
    let err = place.fails(2, &["config", "set", "region", "eu"]);
    assert!(err.contains("is not JSON") && err.contains(r#"'"text"'"#), "{err}");
    let err = place.fails(2, &["credential", "set", "a", "[1]"]);
    assert!(
        err.contains("a credential must be a JSON object, not an array") && err.contains("hint: "),
        "{err}"
    );
    let err = place.fails(2, &["credential", "set", "a", "{access_token:", "ya29}"]);
    assert!(err.contains("as one argument"), "{err}");
    assert!(!place.path().exists(), "an invalid value created a store");

    for line in [
        ["config", "set", "big", "18446744073709551617"],
        ["credential", "set", "big", r#"{"id": 18446744073709551617}"#],
    ] {
        let err = place.fails(2, &line);
        assert!(err.starts_with("error: whole numbers beyond 64 bits can't be stored"), "{err}");
        assert!(err.ends_with("hint: store it as a string to keep its digits\n"), "{err}");
        assert!(!err.contains("18446744073709551617"), "{err}");
    }
    assert!(!place.path().exists());
    place.ok(&["config", "set", "big", "18446744073709551615"]);
    assert_eq!(place.ok(&["config", "get", "big"]), "18446744073709551615\n");
}

#[test]
fn duplicate_names_are_refused() {
    let place = Place::new();
    for value in [r#"{"secret":1,"secret":2}"#, r#"{"a":[{},{"b":{"x":1,"y":2,"\u0078":null}}]}"#] {
        for what in ["credential", "config"] {
            let err = place.fails(2, &[what, "set", "a", value]);
            assert!(
                err.starts_with("error: an object in the value has a name twice, at line 1 column "),
                "{err}"
            );
            assert!(!err.contains("secret"));
        }
    }
    place.ok(&["config", "set", "a", r#"[{"x":1},{"x":-2.5,"y":{"x":"x"}}]"#]);
    assert_eq!(
        place.ok(&["config", "get", "a"]).split_whitespace().collect::<String>(),
        r#"[{"x":1},{"x":-2.5,"y":{"x":"x"}}]"#
    );
    // Deeper than serde_json reads.
    let deep = "[".repeat(200);
    assert_eq!(place.fails_as(2, &["config", "set", "a", &deep]), "too_large");
}

#[test]
fn other_files_are_not_stores() {
    let place = Place::new();
    fs::write(place.path(), "mine").unwrap();
    assert!(place.fails(2, &["config", "set", "a", "1"]).contains("is not a directory"));
    assert_eq!(fs::read(place.path()).unwrap(), b"mine");

    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    fs::write(place.path().join("store.redb"), "").unwrap();
    assert_eq!(place.fails_as(5, &["doctor"]), "corrupt");
}

#[test]
fn unsupported_commands_name_the_backends() {
    let place = Place::new();
    for line in
        [&["cache", "set", "k", "v", "--ttl", "90s"][..], &["cache", "get", "k"], &["cache", "delete", "k"]]
    {
        assert_eq!(
            place.fails(6, line),
            "error: `File` cannot cache; backends that can: `Memory`, `Redis`\n",
            "{line:?}"
        );
    }
    assert!(!place.path().exists());
    // The command fails before it reads the value: stdin stays open.
    let mut child = place.command(&["cache", "set", "k", "-", "--ttl", "1s"]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let _open = child.stdin.take();
    assert_eq!(output_of(child).status.code(), Some(6));
}

#[test]
fn servers_on_this_machine_need_no_tls() {
    let place = Place::new();
    let server = servers::redis::Server::start(&[]);
    for url in [servers::postgres(), servers::mongodb_alone(), server.url()] {
        place.ok(&["--url", &url, "config", "set", "a", "1"]);
        let doctor = place.ok(&["--url", &url, "doctor"]);
        let tls = doctor.lines().find(|line| line.starts_with("TLS ")).unwrap();
        assert!(tls.ends_with("  not needed: on this machine"), "{doctor}");
        assert!(!doctor.contains("no TLS"), "{doctor}");
    }
    let doctor = place.ok(&["--url", &server.url(), "doctor"]);
    let row = |name: &str| doctor.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(row("used memory").ends_with("iB") && row("maxmemory ") == "no limit", "{doctor}");
    assert!(
        row("rdb last save time").starts_with("20") && row("rdb last save time").ends_with('Z'),
        "{doctor}"
    );
}
