//! `watch`: a process of its own, beside others that change the store.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use gateway_storage::{File, Storage};
use serde_json::{Value, json};

use crate::{
    Ended, Place, ended,
    servers::{self, output_of},
};

/// A `storage watch` that runs.
struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Place {
    fn watch(&self, options: &[&str]) -> Watching {
        let mut command = self.command(&[&["watch"], options].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (told, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Watching { child, lines }
    }

    /// A watch that has begun.
    #[track_caller]
    fn begun(&self, options: &[&str]) -> Watching {
        let watching = self.watch(options);
        let first = watching.next();
        if let Some((time, rest)) = first.split_once('\t') {
            assert!(time.len() == 20 && time.ends_with('Z'), "{first}");
            assert_eq!(rest, "resync\tchanges before this may have been missed");
        } else {
            assert_eq!(document(&first)["event"], "resync");
        }
        watching
    }

    fn with_config() -> Self {
        let place = Self::new();
        place.ok(&["config", "set", "first", "1"]);
        place
    }
}

impl Watching {
    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(60)).expect("a line")
    }

    /// Waits for a change, as KIND, tab, KEY. Returns the changes that come before it: one may be told twice.
    #[track_caller]
    fn until(&self, change: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.next();
            let told = line.split_once("\tchanged\t").unwrap_or_else(|| panic!("no change: {line}")).1;
            if told == change {
                return before;
            }
            before.push(told.to_owned());
        }
    }

    /// The next document with this event.
    #[track_caller]
    fn document(&self, event: &str) -> Value {
        loop {
            let document = document(&self.next());
            if document["event"] == event {
                return document;
            }
            assert_eq!(document["event"], "idle", "{document}");
        }
    }

    fn signalled(self, name: &str) -> Ended {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
        ended(output_of(self.child))
    }
}

#[track_caller]
fn document(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| panic!("no document: {line}"))
}

#[test]
fn changes_of_other_processes_are_shown() {
    let place = Place::with_config();
    let watching = place.begun(&[]);
    place.ok(&["config", "set", "a b", "1"]);
    watching.until("config\ta b");
    place.ok(&["credential", "set", "团", "{}"]);
    watching.until("credential\t团");
    place.ok(&["usage", "increment", "u", "n", "1"]);
    place.ok(&["config", "delete", "a b"]);
    assert!(watching.until("config\ta b").iter().all(|told| told == "credential\t团"), "counters are not");
    let Ended { code, err, .. } = watching.signalled("-INT");
    assert_eq!(code, Some(0), "{err}");
    // A cursor of `File` is a position in the memory of a process.
    assert!(err.is_empty(), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_kind_are_shown_on_request() {
    let place = Place::with_config();
    let program = Storage::<File>::open(format!("{}?shared=multi-writer", place.url())).await.unwrap();
    for (kinds, shown, hidden) in
        [("configs", "config", "credential"), ("credential", "credential", "config")]
    {
        let watching = place.begun(&["--kinds", kinds]);
        // In one moment events have no order.
        let mut before = Vec::new();
        for key in [kinds.to_owned(), format!("{kinds} again")] {
            program.set_credential(&*key, json!({})).await.unwrap();
            program.set_config(&*key, json!(1)).await.unwrap();
            before.extend(watching.until(&format!("{shown}\t{key}")));
        }
        assert!(!before.iter().any(|told| told.starts_with(hidden)), "{before:?}");
        assert_eq!(watching.signalled("-HUP").code, Some(0));
    }
    let both = place.begun(&["--kinds", "configs,credentials"]);
    program.set_credential("both", json!({})).await.unwrap();
    both.until("credential\tboth");
    program.set_config("both", json!(1)).await.unwrap();
    both.until("config\tboth");
    program.close().await.unwrap();
    let err = place.fails(2, &["watch", "--kinds", "usage"]);
    assert!(err.contains("[possible values: credentials, configs]"), "{err}");
    assert_eq!(both.signalled("-TERM").code, Some(0));
}

#[test]
fn events_are_documents_with_their_cursor() {
    let place = Place::with_config();
    let watching = place.watch(&["--output", "json"]);
    let names = |document: &Value| document.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let first = document(&watching.next());
    assert_eq!(names(&first), ["cursor", "event"]);
    assert_eq!(first["event"], "resync");
    assert!(first["cursor"].as_str().unwrap().starts_with("file:"), "{first}");
    assert_eq!(names(&watching.document("idle")), ["cursor", "event"]);
    place.ok(&["credential", "set", "alice", r#"{"access_token":"s3cret"}"#]);
    let changed = watching.document("changed");
    assert_eq!(names(&changed), ["cursor", "event", "key", "kind"]);
    assert_eq!((&changed["kind"], &changed["key"]), (&json!("credential"), &json!("alice")));
    assert_ne!(changed["cursor"], first["cursor"]);
    let ended = watching.signalled("-INT");
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

/// Beside a program that is the only writer, the command can only read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_can_only_be_read_is_watched() {
    let place = Place::with_config();
    let program = Storage::<File>::open(format!("{}?shared=single-writer", place.url())).await.unwrap();
    let watching = place.begun(&[]);
    program.set_config("a", json!(1)).await.unwrap();
    // It is not known which one.
    watching.until("config");
    program.close().await.unwrap();
    assert_eq!(watching.signalled("-TERM").code, Some(0));
}

/// It does not wait for a change to notice that.
#[test]
fn a_reader_may_close_the_pipe() {
    let place = Place::with_config();
    for output in ["human", "json"] {
        let mut command = place.command(&["watch", "--output", output]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        assert!(first.contains("resync"), "{first}");
        drop(out);
        let ended = ended(output_of(child));
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{output}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_watch_that_can_not_be_written_is_an_error() {
    let place = Place::with_config();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ended = ended(place.command(&["watch", "--output", "json"]).stdout(full).output().unwrap());
    assert_eq!((ended.code, &document(&ended.err)["error"]["kind"]), (Some(1), &json!("output")));
}

#[test]
fn a_wrong_line_or_store_is_refused() {
    let place = Place::new();
    for cursor in ["", "a b", "é", &"x".repeat(4097)] {
        assert_eq!(place.fails_as(2, &["watch", "--from", cursor]), "invalid_value", "{cursor}");
    }
    let err = place.fails(2, &["watch", "--from", "s3cret text"]);
    assert!(!err.contains("s3cret") && err.contains("a cursor must be"), "{err}");
    assert_eq!(place.fails_as(5, &["watch"]), "not_found");
    assert!(!place.path().exists(), "no store is created");
    // Of another store, or unreadable: it begins anew.
    let place = Place::with_config();
    for cursor in ["memory:1f.7", "nothing", "file:zz.-1"] {
        assert_eq!(place.begun(&["--from", cursor]).signalled("-TERM").code, Some(0), "{cursor}");
    }
}

/// A store whose cursors outlive a process.
#[test]
fn a_later_watch_goes_on_where_an_earlier_one_ended() {
    let (place, url) = (Place::new(), servers::postgres());
    let set = |key| place.ok(&["--url", &url, "config", "set", key, "1"]);
    set("before");
    // The command creates nothing that a program has not created.
    assert!(place.fails(6, &["--url", &url, "watch"]).contains("storage schema up --watch"));
    place.ok(&["--url", &url, "schema", "up", "--watch"]);
    let watching = place.watch(&["--url", &url]);
    assert!(watching.next().contains("resync"));
    set("meanwhile");
    watching.until("config\tmeanwhile");
    let err = watching.signalled("-INT").err;
    let cursor = err.strip_prefix("note: to go on from here, add --from ").expect(&err).trim_end();
    set("later");
    for output in ["json", "human"] {
        let line = ["--url", &url, "--from", cursor, "--output", output];
        let later = place.watch(&line);
        let told = later.next();
        match output {
            "json" => assert_eq!(document(&told)["key"], "later"),
            _ => assert!(told.ends_with("\tchanged\tconfig\tlater"), "{told}"),
        }
        assert_eq!(later.signalled("-TERM").code, Some(0));
    }
}

/// Only the server knows that.
#[test]
fn a_server_that_can_not_be_watched_is_reported() {
    let (place, url) = (Place::new(), servers::mongodb_alone());
    place.ok(&["--url", &url, "config", "set", "a", "1"]);
    assert_eq!(place.fails_as(6, &["--url", &url, "watch"]), "unsupported");
}
