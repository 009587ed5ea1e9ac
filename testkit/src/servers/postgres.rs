//! PostgreSQL servers that a test can kill and stop, and PgBouncer before one.

use std::{
    fs,
    net::TcpStream,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;

use super::{free_port, until};

/// A server.
pub struct Server {
    process: Child,
    guard: Child,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its files; the cluster is in `data`.
    pub folder: TempDir,
    options: Vec<String>,
}

/// PostgreSQL's programs are often not on the PATH.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = debian.map(|version| version.path().join("bin")).collect();
    folders.sort();
    on_path.chain(folders.into_iter().rev()).map(|folder| folder.join(name)).find(|path| path.exists()).expect(
        "these tests start PostgreSQL and PgBouncer: apt-get install postgresql pgbouncer, or brew install both, and see \
         tests/run",
    )
}

/// The user to run it as, because PostgreSQL refuses root.
fn owner() -> Option<(u32, u32)> {
    let id = Command::new("id").arg("-u").output().unwrap();
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("a user `postgres` to run servers as");
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

/// Ends a server when this process ends in any way, and removes its directory.
fn guard(process: &Child, folder: &Path) -> Child {
    at_end(&format!("kill -CONT {0}; kill -QUIT {0}; sleep 1; kill -9 {0}", process.id()), folder)
}

/// Runs a command when this process ends, which closes its end of the pipe.
fn at_end(command: &str, folder: &Path) -> Child {
    let mut guard = Command::new("sh");
    guard.args(["-c", &format!("cat >/dev/null; {command}; rm -rf \"$0\"")]).arg(folder);
    guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if let Some((user, group)) = owner() {
        chown(folder.path(), Some(user), Some(group)).unwrap();
    }
    folder
}

/// A new cluster, to be copied, because creating one takes a second.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<(TempDir, Child)> = OnceLock::new();
    TEMPLATE
        .get_or_init(|| {
            let folder = folder();
            let made = command("initdb")
                .args(["--no-sync", "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"])
                .arg(folder.path().join("data"))
                .status();
            assert!(made.unwrap().success(), "initdb");
            let guard = at_end(":", folder.path());
            (folder, guard)
        })
        .0
        .path()
}

impl Server {
    /// A server with these settings (`NAME=VALUE`).
    pub fn start(options: &[&str]) -> Self {
        Self::prepared(options, |_| {})
    }

    /// A server whose files are changed before it starts.
    pub fn prepared(options: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = folder();
        // Keeps owner and mode.
        let copied = Command::new("cp").arg("-a").arg(template().join("data")).arg(folder.path()).status();
        assert!(copied.unwrap().success());
        prepare(&folder.path().join("data"));
        let port = free_port();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let (process, guard) = Self::run(port, folder.path(), &options);
        Self { process, guard, port, folder, options }
    }

    fn run(port: u16, folder: &Path, options: &[String]) -> (Child, Child) {
        let mut server = command("postgres");
        server.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args(["-p", &port.to_string()]);
        // A killed server loses nothing without fsync, because the machine keeps running.
        server.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"]);
        server.args(options.iter().flat_map(|option| ["-c", option]));
        let process = server.spawn().unwrap();
        let guard = guard(&process, folder);
        let port = port.to_string();
        until("PostgreSQL answers", || {
            command("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        });
        (process, guard)
    }

    /// The URL of a store.
    pub fn url(&self) -> String {
        format!("postgres://tester@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Immediate shutdown: every session ends in the middle of its work.
    pub fn kill(&mut self) {
        self.signal("-QUIT", self.process.id());
        self.process.wait().unwrap();
        // The guard would remove the directory.
        drop(self.guard.kill());
        drop(self.guard.wait());
    }

    /// kill -9 of the server and all of its sessions.
    pub fn kill_nine(&mut self) {
        // First, or it would end its sessions in order.
        self.signal("-STOP", self.process.id());
        self.signal_all("-KILL");
        self.process.wait().unwrap();
        drop(self.guard.kill());
        drop(self.guard.wait());
    }

    /// Starts it again after it was killed, on its port and its data.
    pub fn restart(&mut self) {
        (self.process, self.guard) = Self::run(self.port, self.folder.path(), &self.options);
    }

    /// Stops (`-STOP`) or continues (`-CONT`) the server and all of its sessions.
    pub fn signal_all(&self, signal: &str) {
        let children = Command::new("pgrep").args(["-P", &self.process.id().to_string()]).output().unwrap();
        self.signal(signal, self.process.id());
        for child in String::from_utf8(children.stdout).unwrap().lines() {
            self.signal(signal, child.parse().unwrap());
        }
    }

    fn signal(&self, signal: &str, process: u32) {
        let sent =
            Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status().unwrap();
        // A session may have ended meanwhile.
        assert!(sent.success() || process != self.process.id());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal_all("-CONT");
        self.signal("-QUIT", self.process.id());
        drop(self.process.wait());
        drop(self.guard.kill());
        drop(self.guard.wait());
    }
}

/// PgBouncer in transaction mode.
pub struct PgBouncer {
    process: Child,
    _guard: Child,
    port: u16,
    _folder: TempDir,
}

impl PgBouncer {
    /// A pooler of this server.
    pub fn before(server: &Server) -> Self {
        let (folder, port) = (folder(), free_port());
        let file = folder.path().join("pgbouncer.ini");
        let config = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres user=tester\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 8\nmax_client_conn = 500\n",
            server.port
        );
        fs::write(&file, config).unwrap();
        let process = command("pgbouncer").arg("-q").arg(&file).spawn().unwrap();
        let guard = guard(&process, folder.path());
        until("PgBouncer answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { process, _guard: guard, port, _folder: folder }
    }

    /// The URL of a store through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://tester@127.0.0.1:{}/postgres?sslmode=disable&pgbouncer=true", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
