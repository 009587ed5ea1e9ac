//! A server of git's own: remotes over a network.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::git;

/// `git daemon`, until it is dropped.
pub(crate) struct Daemon {
    process: Child,
    port: u16,
}

impl Daemon {
    /// Serves what is below a directory, for reading and writing.
    pub(crate) fn start(base: &Path) -> Self {
        // Not through `git`, which would be another process.
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
            // If another program was faster it ends, and another port is tried.
            while daemon.process.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return daemon;
                }
                std::thread::sleep(Duration::from_millis(10));
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
