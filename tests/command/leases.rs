//! `lease run` and `lease list`.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use gateway_storage::{
    File, FileOptions, Storage,
    lease::{Claim, Holder},
};
use serde_json::{Value, json};

use crate::{
    Ended, Place, ended,
    servers::{self, output_of, until},
};

/// `lease run`, of a shell script.
fn run<'l>(name: &'l str, options: &[&'l str], script: &'l str) -> Vec<&'l str> {
    [&["lease", "run", name, "--ttl", "30s"], options, &["--", "sh", "-c", script]].concat()
}

impl Place {
    /// A place whose store exists.
    fn with_store() -> Self {
        let place = Self::new();
        place.ok(&["config", "set", "a", "1"]);
        place
    }

    fn begin_at(&self, url: &str, line: &[&str]) -> Child {
        let mut command = self.command(line);
        command.env("STORAGE_URL", url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Begins a command that writes its process's number to the file `started`, and waits for that.
    fn begin_and_wait(&self, url: &str, options: &[&str], script: &str) -> Child {
        let started = self.file("started");
        drop(fs::remove_file(&started));
        let script = format!("echo $$ > started.new; mv started.new started; {script}");
        let line: Vec<&str> =
            [&["lease", "run", "job"], options, &["--", "sh", "-c", script.as_str()]].concat();
        let mut child = self.begin_at(url, &line);
        until("the command runs", || started.exists() || child.try_wait().unwrap().is_some());
        if !started.exists() {
            panic!("it ended: {}", ended(output_of(child)).err);
        }
        child
    }

    /// Whether the process of `begin_and_wait` runs.
    fn is_running(&self) -> bool {
        let id = fs::read_to_string(self.file("started")).unwrap();
        signal(id.trim(), "-0")
    }
}

fn signal(id: &str, name: &str) -> bool {
    Command::new("kill").args([name, id]).stderr(Stdio::null()).status().unwrap().success()
}

async fn store(path: &Path) -> Storage<File> {
    Storage::open(FileOptions::new(path).with_wait(Duration::from_secs(60))).await.unwrap()
}

#[test]
fn the_command_gets_its_lease_and_its_exit_code_is_passed_on() {
    let place = Place::with_store();
    for code in [0, 1, 3, 75, 255] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let Ended { code: found, out, err } = place.run(&run("job", &[], &script));
        assert_eq!((found, out.as_str(), err.as_str()), (Some(code), "out\n", "err\n"));
    }
    let seen = place.ok(&run("a job", &[], "printf '%s %s' \"$STORAGE_LEASE_NAME\" $STORAGE_LEASE_NUMBER"));
    let (name, number) = seen.rsplit_once(' ').unwrap();
    assert_eq!(name, "a job");
    // By the clock, in microseconds: later than the year 2020.
    assert!(number.parse::<u64>().unwrap() > 1_577_836_800_000_000, "{number}");
    let again: u64 = place.ok(&run("a job", &[], "echo $STORAGE_LEASE_NUMBER")).trim().parse().unwrap();
    assert!(again > number.parse().unwrap());
    assert_eq!(place.run(&run("job", &[], "kill -TERM $$")).code, Some(128 + 15));
    // Its output is the command's, whatever the format.
    let line = [&["--output", "json"], &run("job", &[], "echo x")[..]].concat();
    assert_eq!(place.ok(&line), "x\n");
    assert_eq!(place.ok(&["lease", "list"]), "");
    assert_eq!(place.json(&["lease", "list"]), json!([]));
}

#[test]
fn a_command_that_can_not_be_started_frees_the_lease() {
    let place = Place::with_store();
    let started = |code, command| place.fails(code, &["lease", "run", "job", "--ttl", "30s", "--", command]);
    fs::write(place.file("plain"), "").unwrap();
    assert!(started(126, "./plain").contains("can't be started\n  caused by: Permission denied"));
    assert!(started(127, "no-such-program").contains("can't be started\n  caused by: No such file"));
    assert_eq!(place.ok(&["lease", "list"]), "");
}

#[test]
fn a_rest_keeps_others_out_after_success_only() {
    let place = Place::with_store();
    assert_eq!(place.run(&run("job", &["--rest", "20h"], "exit 1")).code, Some(1));
    assert_eq!(place.ok(&run("job", &["--rest", "20h"], "echo once")), "once\n");
    let err = place.fails(75, &run("job", &[], "echo twice"));
    assert!(err.starts_with("error: the lease is not free: it is held or rests for another "), "{err}");
    assert!(err.contains("19h") || err.contains("20h"), "{err}");
    assert!(err.contains("hint: `storage lease list` shows its holder"), "{err}");
    assert_eq!(place.fails_as(75, &run("job", &["--wait", "300ms"], "echo twice")), "busy");
    assert_eq!(place.ok(&run("another", &[], "echo other")), "other\n");

    let listed = place.ok(&["lease", "list"]);
    let fields: Vec<&str> = listed.trim_end().split('\t').collect();
    assert_eq!(fields[..2], ["job", "resting"], "{listed}");
    let document = place.json(&["lease", "list"]);
    let state = document[0].as_object().unwrap();
    assert_eq!(state.keys().collect::<Vec<_>>(), ["holder", "left_ms", "name", "number"]);
    assert_eq!((&state["holder"], &state["name"]), (&Value::Null, &json!("job")));
    assert!(state["left_ms"].as_u64().unwrap() <= 20 * 60 * 60 * 1000);
    assert_eq!(state["number"].to_string(), fields[3]);
}

#[test]
fn invalid_times_are_refused_before_the_command_runs() {
    let place = Place::with_store();
    for options in [&["--ttl", "0s"][..], &["--ttl", "32days"], &["--ttl", "1s", "--rest", "32days"]] {
        let line = [&["lease", "run", "job"], options, &["--", "touch", "ran"]].concat();
        place.fails(2, &line);
    }
    place.fails(2, &["lease", "run", "job", "--", "touch", "ran"]);
    place.fails(2, &["lease", "run", "job", "--ttl", "1s"]);
    assert!(!place.file("ran").exists());
    let new = Place::new();
    new.fails(5, &run("job", &[], "true"));
    assert!(!new.path().exists(), "no store is created");
    let git = format!("git:{}", new.path().display());
    let err = new.fails(6, &[&["--url", &git], &run("job", &[], "true")[..]].concat());
    assert!(err.starts_with("error: `Git` cannot keep leases; backends that can: `File`, `Memory`"), "{err}");
}

#[test]
fn signals_are_passed_on_and_the_lease_is_released() {
    let place = Place::with_store();
    for (name, code) in [("INT", 7), ("TERM", 7), ("HUP", 7)] {
        // Without a child, which would get the signal, too, and whose end the shell might report.
        let script = format!("trap 'exit 7' {name}; touch {name}; while :; do :; done");
        let child = place.begin_and_wait(&place.url(), &["--ttl", "60s"], &script);
        until("it waits for the signal", || place.file(name).exists());
        assert!(signal(&child.id().to_string(), &format!("-{name}")));
        let ended = ended(output_of(child));
        assert_eq!(
            (ended.code, ended.err.contains("error") || ended.err.contains("warning")),
            (Some(code), false),
            "{name}"
        );
        assert!(!place.is_running());
        assert_eq!(place.ok(&["lease", "list"]), "", "{name}");
    }
    // The signal reaches what the command has started, too.
    let child = place.begin_and_wait(&place.url(), &["--ttl", "60s"], "sleep 1000; true");
    assert!(signal(&child.id().to_string(), "-TERM"));
    assert_eq!(output_of(child).status.code(), Some(128 + 15));
    assert!(!place.is_running());
    assert_eq!(place.ok(&["lease", "list"]), "");
}

/// The lease of a process that was killed ends by itself. Its command goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_a_killed_process_ends() {
    let place = Place::with_store();
    let child = place.begin_and_wait(
        &place.url(),
        &["--ttl", "2s"],
        "while ! [ -e stop ]; do sleep 0.05; done; touch ended",
    );
    assert!(signal(&child.id().to_string(), "-KILL"));
    output_of_killed(child);
    assert!(place.is_running());
    let storage = store(&place.path()).await;
    let (holder, ttl) = (Holder::random(), Duration::from_secs(60));
    let Claim::Yours(lease) = storage.wait_for_lease("job", &holder, ttl, ttl).await.unwrap() else {
        panic!("the lease does not end")
    };
    storage.release_lease(&lease, Duration::ZERO).await.unwrap();
    storage.close().await.unwrap();
    fs::write(place.file("stop"), "").unwrap();
    until("the command has ended", || place.file("ended").exists());
}

/// Its command has the pipes, too, so that they do not end with it.
fn output_of_killed(mut child: Child) {
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().unwrap();
}

/// Two processes, which a `File` store can't have at once.
#[test]
fn two_processes_take_turns() {
    let (place, url) = (Place::new(), servers::redis());
    let wait_for_stop = "while ! [ -e stop ]; do sleep 0.05; done; echo first";
    let first = place.begin_and_wait(&url, &["--ttl", "60s"], wait_for_stop);
    let at = |line: &[&'static str]| [&["--url", &*url], line].concat();
    let listed = place.ok(&at(&["lease", "list"]));
    let fields: Vec<&str> = listed.trim_end().split('\t').collect();
    let holder = format!(":{}/", first.id());
    assert!(fields[0] == "job" && fields[1].contains(&holder), "{listed}");
    let list = place.json(&at(&["lease", "list"]));
    assert_eq!((&list[0]["name"], &list[0]["holder"]), (&json!("job"), &json!(fields[1])));

    let second = ["lease", "run", "job", "--ttl", "60s", "--", "echo", "second"];
    let err = place.fails(75, &at(&second));
    assert!(err.contains("the lease is not free"), "{err}");
    let waiting = place
        .begin_at(&url, &["lease", "run", "job", "--ttl", "60s", "--wait", "60s", "--", "echo", "second"]);
    #[cfg(target_os = "linux")]
    {
        let line = ["lease", "run", "job", "--ttl", "60s", "--wait", "1h", "--", "true"];
        let interrupted = place.begin_at(&url, &line);
        let status = format!("/proc/{}/status", interrupted.id());
        until("it handles SIGTERM", || {
            let status = fs::read_to_string(&status).unwrap_or_default();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() >> 14 & 1 == 1)
        });
        assert!(signal(&interrupted.id().to_string(), "-TERM"));
        assert_eq!(output_of(interrupted).status.code(), Some(130), "a signal ends the wait");
    }

    fs::write(place.file("stop"), "").unwrap();
    let first = ended(output_of(first));
    assert_eq!((first.code, first.out.as_str(), first.err.as_str()), (Some(0), "first\n", ""));
    let second = ended(output_of(waiting));
    assert_eq!((second.code, second.out.as_str(), second.err.as_str()), (Some(0), "second\n", ""));
}

/// A process that was suspended for longer than its lease stops its command, and does not end the lease of
/// the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_stops_the_command() {
    let (place, url) = (Place::new(), servers::redis());
    let first = place.begin_and_wait(&url, &["--ttl", "500ms"], "sleep 1000; true");
    assert!(signal(&first.id().to_string(), "-STOP"));
    let at = |line: &[&'static str]| [&["--url", &*url], line].concat();
    let next =
        at(&["lease", "run", "job", "--ttl", "60s", "--wait", "60s", "--rest", "1h", "--", "echo", "next"]);
    assert_eq!(place.ok(&next), "next\n");
    assert!(place.is_running(), "its process is suspended, and does not know yet");
    assert!(signal(&first.id().to_string(), "-CONT"));
    let first = ended(output_of(first));
    assert_eq!((first.code, first.out.as_str()), (Some(76), ""), "{}", first.err);
    assert!(
        first.err.starts_with("error: the lease was lost, so the command was stopped\n"),
        "{}",
        first.err
    );
    assert!(!place.is_running());
    let listed = place.ok(&at(&["lease", "list"]));
    assert!(listed.starts_with("job\tresting\t"), "{listed}");
}
