//! `git daemon`, for remotes over a network.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::git;

/// `git daemon`, until it is dropped.
pub(crate) struct Daemon {
    process: Child,
    port: u16,
}

impl Daemon {
    /// Serves the repositories in a directory, for reading and writing.
    pub(crate) fn start(base: &Path) -> Self {
        // Not through `git`, which would start another process.
        let program = Path::new(git(base, &["--exec-path"]).trim()).join("git-daemon");
        loop {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let process = Command::new(&program)
                .args(["--listen=127.0.0.1", "--reuseaddr", "--export-all", "--enable=receive-pack"])
                .args([format!("--port={port}"), format!("--base-path={}", base.display())])
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut daemon = Self { process, port };
            // If another program took the port, the daemon ends and the next port is tried.
            while daemon.process.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return daemon;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A relay in front of a server. While it is silent it accepts connections and forwards nothing.
pub(crate) struct Relay {
    port: u16,
    server: u16,
    is_silent: Arc<AtomicBool>,
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub(crate) fn start(daemon: &Daemon) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, server) = (listener.local_addr().unwrap().port(), daemon.port);
        let relay = Self { port, server, is_silent: Arc::default(), held: Arc::default() };
        let (is_silent, held) = (relay.is_silent.clone(), relay.held.clone());
        // Runs until the test process ends.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                match is_silent.load(Ordering::SeqCst) {
                    true => held.lock().unwrap().push(client),
                    false => pass(client, server),
                }
            }
        });
        relay
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }

    /// Applies to new connections.
    pub(crate) fn silence(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::SeqCst);
    }

    /// The number of silent connections.
    pub(crate) fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Forwards the silent connections too, and returns their number.
    pub(crate) fn release(&self) -> usize {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().map(|client| pass(client, self.server)).count()
    }
}

fn pass(client: TcpStream, server: u16) {
    let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
    let ways = [(&client, &server), (&server, &client)].map(|(from, to)| (from.try_clone(), to.try_clone()));
    for (from, to) in ways {
        let (mut from, mut to) = (from.unwrap(), to.unwrap());
        thread::spawn(move || {
            drop(io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Write));
        });
    }
}
