//! Early ends of a command: signals, a full disk, a closed pipe.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    os::unix::{fs::symlink, process::CommandExt},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use gateway_storage::PostgresOptions;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use crate::{
    Ended, Place, bare, ended,
    servers::{self, output_of, until},
};

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

impl Place {
    /// The temporary files of exports.
    fn temporary_files(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".tmp")).collect()
    }

    fn begin(&self, url: &str, line: &[&str]) -> Child {
        let mut command = self.command(line);
        command.env("STORAGE_URL", url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// A store in PostgreSQL whose export waits until the client is gone.
async fn held() -> (Client, String) {
    let url = format!("{}&deadline=1h&statement_timeout=0s&lock_timeout=0s", servers::postgres());
    let set = bare(&["--url", &url, "config", "set", "a", "1"]).output().unwrap();
    assert_eq!(ended(set).code, Some(0));
    let config = PostgresOptions::try_from(&*url).unwrap();
    let (host, port) = config.addr.rsplit_once(':').unwrap();
    let mut raw = tokio_postgres::Config::new();
    raw.host(host).port(port.parse().unwrap()).user("tester").dbname("postgres");
    let (client, connection) = raw.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let lock = format!("BEGIN; LOCK TABLE {}.configs", config.schema);
    client.batch_execute(&lock).await.unwrap();
    (client, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_is_ended_leaves_no_file() {
    let place = Place::new();
    let (client, url) = held().await;
    for signals in [&["-INT"][..], &["-TERM"], &["-HUP"], &["-STOP", "-INT", "-TERM", "-CONT"]] {
        let child = place.begin(&url, &["export", "a"]);
        until("it is written", || !place.temporary_files().is_empty());
        signals.iter().for_each(|name| signal(&child, name));
        let ended = ended(output_of(child));
        assert_eq!((ended.code, ended.out.as_str()), (Some(130), ""), "{signals:?}: {}", ended.err);
        assert_eq!(place.temporary_files(), [""; 0], "{signals:?}");
        assert!(!place.dir.path().join("a").exists());
    }
    drop(client);
}

/// It writes into a full pipe, where only the second signal can end it.
#[test]
fn a_second_signal_ends_it_at_once() {
    let place = Place::with_much();
    let mut child = place.begin(&place.url(), &["export"]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 10]).unwrap();
    signal(&child, "-INT");
    // Two signals at once would be one.
    sleep(Duration::from_millis(500));
    signal(&child, "-INT");
    assert_eq!(output_of(child).status.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_under_nohup_survives_a_hangup() {
    let place = Place::new();
    let (client, url) = held().await;
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" export a", env!("CARGO_BIN_EXE_storage")]);
    command.env("STORAGE_URL", url).current_dir(place.dir.path()).stdout(Stdio::null());
    let child = command.process_group(0).spawn().unwrap();
    until("it is written", || !place.temporary_files().is_empty());
    signal(&child, "-HUP");
    sleep(Duration::from_millis(300));
    drop(client);
    assert!(output_of(child).status.success());
    assert!(place.dir.path().join("a").exists());
}

#[test]
fn temporary_files_of_a_killed_export_are_removed() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    let write = |name: &str| fs::write(place.dir.path().join(name), "secrets").unwrap();
    [".a.4711.tmp", ".b.4711.tmp", ".a.x.tmp", ".a..tmp", ".a.12.tmp"].into_iter().for_each(write);
    let other = fs::File::open(place.dir.path().join(".a.12.tmp")).unwrap();
    other.lock().unwrap();
    symlink(place.dir.path().join(".b.4711.tmp"), place.dir.path().join(".a.13.tmp")).unwrap();
    place.ok(&["export", "a"]);
    let mut left = place.temporary_files();
    left.sort_unstable();
    assert_eq!(
        left,
        [".a..tmp", ".a.12.tmp", ".a.13.tmp", ".a.x.tmp", ".b.4711.tmp"],
        "only files without a writer"
    );
}

impl Place {
    /// A store with more than a pipe holds.
    fn with_much() -> Self {
        let place = Self::new();
        let value = format!("\"{}\"", "x".repeat(1_000_000));
        assert_eq!(place.fed(&value, &["config", "set", "a", "-"]).code, Some(0));
        place
    }
}

#[track_caller]
fn is_of_the_output(ended: &Ended, file: &str) {
    let error: Value = serde_json::from_str(&ended.err).unwrap_or_else(|_| panic!("{}", ended.err));
    let error = &error["error"];
    assert_eq!(
        (ended.code, &error["kind"], &error["outcome"]),
        (Some(1), &json!("output"), &json!("not_applied"))
    );
    assert!(error["message"].as_str().unwrap().starts_with(&format!("{file} can't be written: ")), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_output_error() {
    let place = Place::with_much();
    for format in ["ndjson", "go"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = place.command(&["export", "--format", format, "--output", "json"]);
        is_of_the_output(&ended(command.stdout(full).output().unwrap()), "stdout");

        let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_storage"), "--url", "memory:", "--output", "json"]);
        command.args(["export", "a", "--format", format]).current_dir(place.dir.path());
        is_of_the_output(&ended(command.output().unwrap()), "`a`");
        assert_eq!(place.temporary_files(), [""; 0]);
    }
}

#[test]
fn a_reader_of_an_export_may_close_the_pipe() {
    let place = Place::with_much();
    for format in ["ndjson", "go"] {
        let mut child = place.begin(&place.url(), &["export", "--format", format]);
        child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
        let ended = ended(output_of(child));
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{format}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_does_not_wait_for_records() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    let (client, url) = held().await;
    let from = place.url();
    for line in [
        &["verify", &from, &url][..],
        &["verify", &url, &from],
        &["copy", &from, &url],
        &["copy", &url, "file:./to"],
        &["export", "a"],
    ] {
        let mut child = place.begin(&url, line);
        // Until the server blocks it.
        sleep(Duration::from_secs(1));
        signal(&child, "-INT");
        until("it ends", || child.try_wait().unwrap().is_some());
        let ended = ended(output_of(child));
        assert_eq!(ended.code, Some(130), "{line:?}");
        assert!(ended.err.starts_with("error: interrupted\n"), "{line:?}: {}", ended.err);
    }
    drop(client);
}

/// The server accepts connections and never answers.
#[test]
fn an_interrupt_does_not_wait_for_a_store() {
    let place = Place::new();
    place.ok(&["config", "set", "a", "1"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mongodb://{}/db", silent.local_addr().unwrap());
    let from = place.url();
    for line in [
        &["copy", &from, &url][..],
        &["copy", &from, &url, "--dry-run"],
        &["verify", &from, &url],
        &["export", "a"],
    ] {
        let child = place.begin(&url, line);
        // The signal ends it whether it listens already or not.
        sleep(Duration::from_millis(700));
        signal(&child, "-INT");
        let status = output_of(child).status;
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status) == Some(2);
        assert!(by_signal || status.code() == Some(130), "{line:?}: {status}");
    }
}
