//! MongoDB servers that a test can kill and stop: standalone, and as a replica set.

use std::{
    fs::File,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mongodb::{
    Client,
    bson::{Document, doc},
    error::Result,
    options::ClientOptions,
};
use tempfile::TempDir;

use super::{free_port, until};

/// The program: on the PATH, or where `tests/run` puts it.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/mongodb");
    let found = std::env::split_paths(&path).chain([installed]).map(|folder| folder.join("mongod"));
    found.into_iter().find(|path| path.exists()).expect(
        "these tests start mongod: `tests/run` installs one, or see https://www.mongodb.com/docs/manual/installation/",
    )
}

/// Runs a command on this server only. On a thread of its own, because some callers are asynchronous and
/// others are not.
pub fn ask(port: u16, database: &str, command: Document) -> Result<Document> {
    let database = database.to_owned();
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let url =
                format!("mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=5000");
            let client = Client::with_options(ClientOptions::parse(url).await?)?;
            let answer = client.database(&database).run_command(command).await;
            client.shutdown().await;
            answer
        })
    });
    asked.join().unwrap()
}

/// A server.
pub struct Server {
    process: Child,
    /// Kills the server when this process ends in any way, which closes its end of the pipe.
    guard: Child,
    /// Its port on 127.0.0.1.
    pub port: u16,
    folder: TempDir,
    options: Vec<String>,
}

impl Server {
    /// A standalone server with these options of the command line.
    pub fn start(options: &[&str]) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let (process, guard) = Self::run(folder.path(), port, &options);
        let server = Self { process, guard, port, folder, options };
        server.until_it_answers();
        server
    }

    fn run(folder: &Path, port: u16, options: &[String]) -> (Child, Child) {
        let mut server = Command::new(program());
        server.arg("--dbpath").arg(folder).args(["--port", &port.to_string(), "--bind_ip", "127.0.0.1"]);
        server.args(["--wiredTigerCacheSizeGB", "0.25", "--nounixsocket"]);
        server.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]).args(options);
        let log = File::create(folder.join("log")).unwrap();
        let process = server.stdout(log).stderr(Stdio::null()).spawn().unwrap();
        let command =
            format!("kill -CONT {0} 2>/dev/null; kill -9 {0} 2>/dev/null; rm -rf \"$0\"", process.id());
        let mut guard = Command::new("sh");
        guard.args(["-c", &format!("cat >/dev/null; {command}")]).arg(folder);
        (process, guard.stdin(Stdio::piped()).spawn().unwrap())
    }

    fn until_it_answers(&self) {
        until("mongod answers", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// `HOST:PORT`
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a store.
    pub fn url(&self, database: &str) -> String {
        format!("mongodb://{}/{database}?deadline=10s", self.addr())
    }

    /// Runs a command, which must succeed.
    pub fn ask(&self, database: &str, command: Document) -> Document {
        ask(self.port, database, command).expect("the server answers")
    }

    /// Its log file.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("log")).unwrap()).into_owned()
    }

    /// kill -9. The data stays.
    pub fn kill(&mut self) {
        drop(self.process.kill());
        self.process.wait().unwrap();
        // The guard would remove the directory.
        drop(self.guard.kill());
        self.guard.wait().unwrap();
    }

    /// Starts it again after [`kill`](Self::kill), on its port and its data.
    pub fn restart(&mut self) {
        (self.process, self.guard) = Self::run(self.folder.path(), self.port, &self.options);
        self.until_it_answers();
    }

    /// A key file, by which the members of a set with logins recognize one another.
    pub fn key_file(&self) -> String {
        use std::os::unix::fs::OpenOptionsExt;

        let path = self.folder.path().join("key");
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, b"c2VjcmV0c2VjcmV0").unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Adds an option of the command line, for the next start.
    pub fn add_option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    /// Stops (`-STOP`) or continues (`-CONT`) it.
    pub fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(self.guard.kill());
        drop(self.guard.wait());
    }
}

/// A replica set whose elections take a second.
pub struct ReplicaSet {
    /// The members.
    pub members: Vec<Server>,
}

impl ReplicaSet {
    /// A set of this many members.
    pub fn start(count: usize) -> Self {
        Self::known_as(count, |server| server.addr())
    }

    /// A set whose members announce these addresses to clients and to one another.
    pub fn known_as(count: usize, address: impl Fn(&Server) -> String) -> Self {
        let member = |_| Server::start(&["--replSet", "rs0", "--oplogSize", "64"]);
        let set = Self { members: (0..count).map(member).collect() };
        let members: Vec<Document> = set
            .members
            .iter()
            .enumerate()
            .map(|(at, server)| doc! { "_id": at as i32, "host": address(server) })
            .collect();
        let settings = doc! { "electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200 };
        let config = doc! { "_id": "rs0", "members": members, "settings": settings };
        set.members[0].ask("admin", doc! { "replSetInitiate": config });
        set.primary();
        set
    }

    /// The URL of a store.
    pub fn url(&self, database: &str) -> String {
        let members: Vec<String> = self.members.iter().map(Server::addr).collect();
        format!("mongodb://{}/{database}?replicaSet=rs0", members.join(","))
    }

    /// Waits until there is a primary, and returns the index of that member.
    pub fn primary(&self) -> usize {
        let mut found = None;
        until("a primary is elected", || {
            found = self.members.iter().position(|server| {
                let hello = ask(server.port, "admin", doc! { "hello": 1 });
                hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or_default())
            });
            found.is_some()
        });
        found.unwrap()
    }
}
