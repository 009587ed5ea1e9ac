//! The workers, as their parent sees them.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use crate::{
    refresh_one::Job,
    worker::{AT_A_TIME, Done},
};

/// A process. It is killed when this is dropped.
pub(crate) struct Worker {
    pub(crate) client: String,
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// What it has done in this round.
    done: Vec<Done>,
    has_ended: bool,
    /// Whether it did not run for some time in this round.
    pub(crate) was_paused: bool,
}

impl Worker {
    /// Starts it, and waits until it has opened the store.
    pub(crate) fn start(url: &str, job: &Job) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--worker", url, &job.provider, &job.client])
            .args([job.lease, job.wait].map(|time| time.as_millis().to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                drop(send.send(line));
            }
        });
        let client = job.client.clone();
        let (done, has_ended, was_paused) = (Vec::new(), false, false);
        let mut worker = Self { client, process, input, lines, done, has_ended, was_paused };
        worker.end();
        worker
    }

    /// Begins a round.
    pub(crate) fn begin(&mut self, round: u64, accounts: u64) {
        (self.has_ended, self.was_paused) = (false, false);
        writeln!(self.input, "{round} {accounts}").unwrap();
    }

    fn read(&mut self, line: &str) {
        match line.split(' ').next() {
            Some("done") => self.done.push(Done::read(line)),
            Some("paused") => self.was_paused = true,
            Some("end") => self.has_ended = true,
            _ => panic!("the worker reports {line:?}"),
        }
    }

    /// The number of refreshes that run.
    pub(crate) fn count_running(&mut self, accounts: u64) -> usize {
        while let Ok(line) = self.lines.try_recv() {
            self.read(&line);
        }
        (accounts as usize - self.done.len()).min(AT_A_TIME)
    }

    /// Waits for the end of the round.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Vec<Done> {
        while !self.has_ended {
            let line = self.lines.recv_timeout(Duration::from_secs(120));
            self.read(&line.expect("the worker ends its round"));
        }
        std::mem::take(&mut self.done)
    }

    /// Stops the process, and lets it go on after this time, even if this test ends before.
    pub(crate) fn pause(&self, time: Duration) -> Child {
        let script = r#"kill -STOP "$0"; sleep "$1"; kill -CONT "$0""#;
        let (id, time) = (self.process.id().to_string(), time.as_secs_f64().to_string());
        Command::new("sh").args(["-c", script, &id, &time]).spawn().unwrap()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
