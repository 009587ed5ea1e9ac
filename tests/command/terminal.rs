//! The progress bar and notes.

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use crate::{Place, ended, servers, servers::output_of};

impl Place {
    /// The output of a command on a terminal with this number of columns.
    fn drawn(&self, columns: u16, line: &str) -> String {
        let line = format!("stty cols {columns}; '{}' {line} 2>&1 >/dev/null", env!("CARGO_BIN_EXE_storage"));
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("STORAGE_URL", self.url()).stdin(Stdio::null());
        let ended = ended(command.current_dir(self.dir.path()).output().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.out);
        ended.out
    }

    /// A store with this number of config values.
    fn with_configs(count: usize) -> Self {
        let place = Self::new();
        let many: Vec<String> = (0..count).map(|n| format!(r#"{{"set":"k{n:03}","value":{n}}}"#)).collect();
        fs::write(place.dir.path().join("plan"), format!("[{}]", many.join(","))).unwrap();
        place.ok(&["config", "set", "k", "0"]);
        place.ok(&["plan", "apply", "plan", "--key", "many"]);
        place
    }
}

/// The successive states of the bar.
fn lines(drawn: &str) -> Vec<&str> {
    drawn.split('\r').filter_map(|line| line.split_once("\u{1b}[K")).map(|(line, _)| line).collect()
}

#[test]
fn a_file_is_checked_under_a_bar() {
    let place = Place::with_configs(10);
    place.ok(&["export", "a"]);
    place.ok(&["export", "--format", "go", "b"]);
    for line in ["inspect a", "inspect b", "--url file:./other import a", "--url file:./other import b"] {
        let drawn = place.drawn(100, line);
        let first = lines(&drawn)[0];
        assert!(first.starts_with("checking  1") && first.contains(" bytes  "), "{line}: {drawn:?}");
        assert!(drawn.ends_with("\r\u{1b}[K"), "the bar is removed: {drawn:?}");
    }
    assert!(lines(&place.drawn(100, "inspect < a"))[0].starts_with("checking  100%"));
}

#[test]
fn a_bar_fits_the_terminal() {
    let place = Place::with_configs(10);
    for (columns, wanted) in [(10, "copying"), (30, "copying  100%  11 records")] {
        let drawn = place.drawn(columns, "copy $STORAGE_URL file:./copy --on-conflict skip");
        assert_eq!(lines(&drawn)[0], wanted, "{drawn:?}");
    }
}

#[test]
fn retries_are_reported_with_v() {
    let place = Place::with_configs(300);
    let mut server = servers::redis::Server::start(&[]);
    let (from, to) = (place.url(), server.url());
    let line = ["-v", "copy", &from, &to, "--rate", "100", "--batch", "10"];
    let copy = place.command(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_secs(1));
    server.kill();
    sleep(Duration::from_secs(1));
    server.restart();
    let ended = ended(output_of(copy));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("note: ") && ended.err.contains("; trying again in "), "{}", ended.err);
}
