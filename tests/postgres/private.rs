//! A server of the test's own, which it can kill and stop.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    pub(crate) folder: TempDir,
    options: Vec<String>,
}

/// PostgreSQL's programs are often not on the PATH.
fn program(name: &str) -> PathBuf {
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = debian.map(|version| version.path().join("bin")).collect();
    folders.sort();
    on_path.chain(folders.into_iter().rev()).map(|folder| folder.join(name)).find(|path| path.exists()).expect(
        "these tests start PostgreSQL: apt-get install postgresql, or brew install postgresql, and see tests/run",
    )
}

/// Whom to run it as: PostgreSQL refuses root.
fn owner() -> Option<(u32, u32)> {
    let id = Command::new("id").arg("-u").output().unwrap();
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find(|line| line.starts_with("postgres:")).expect("a user `postgres` to run servers as");
    let fields: Vec<&str> = user.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if let Some((user, group)) = owner() {
        chown(folder.path(), Some(user), Some(group)).unwrap();
    }
    folder
}

/// A new cluster, made once: making one takes a second.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    TEMPLATE
        .get_or_init(|| {
            let folder = folder();
            let made = command("initdb")
                .args(["--no-sync", "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"])
                .arg(folder.path().join("data"))
                .status();
            assert!(made.unwrap().success(), "initdb");
            folder
        })
        .path()
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::prepared(options, |_| {})
    }

    /// One whose files are changed before it starts.
    pub(crate) fn prepared(options: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = folder();
        // Keeps owner and mode.
        let copied = Command::new("cp").arg("-a").arg(template().join("data")).arg(folder.path()).status();
        assert!(copied.unwrap().success());
        prepare(&folder.path().join("data"));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Self { process: Self::run(port, folder.path(), &options), port, folder, options }
    }

    fn run(port: u16, folder: &Path, options: &[String]) -> Child {
        let mut server = command("postgres");
        server.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args(["-p", &port.to_string()]);
        // A server that is killed loses nothing that the machine still has.
        server.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"]);
        server.args(options.iter().flat_map(|option| ["-c", option]));
        server.spawn().unwrap()
    }

    /// Waits until it takes connections.
    pub(crate) async fn ready(self) -> Self {
        self.wait().await;
        self
    }

    async fn wait(&self) {
        let begun = Instant::now();
        loop {
            let url = format!("host=127.0.0.1 port={} user=tester dbname=postgres", self.port);
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_ok()
            {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "PostgreSQL does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://tester@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Immediate shutdown: every session ends in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        self.signal("-QUIT", self.process.id());
        self.process.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.process = Self::run(self.port, self.folder.path(), &self.options);
        self.wait().await;
    }

    /// Stops (`-STOP`) or continues (`-CONT`) the server and all of its sessions.
    pub(crate) fn signal_all(&self, signal: &str) {
        let children = Command::new("pgrep").args(["-P", &self.process.id().to_string()]).output().unwrap();
        self.signal(signal, self.process.id());
        for child in String::from_utf8(children.stdout).unwrap().lines() {
            self.signal(signal, child.parse().unwrap());
        }
    }

    fn signal(&self, signal: &str, process: u32) {
        let sent = Command::new("kill").args([signal, &process.to_string()]).status().unwrap();
        // A session may have ended meanwhile.
        assert!(sent.success() || process != self.process.id());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal_all("-CONT");
        self.signal("-QUIT", self.process.id());
        drop(self.process.wait());
    }
}
