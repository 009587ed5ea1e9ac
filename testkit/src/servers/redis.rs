//! Redis servers that a test can kill and stop: standalone, as a cluster, with sentinels, over TLS.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{free_port, until};

/// A connection for commands as another program sends them.
pub struct Raw(TcpStream);

impl Raw {
    /// Connects to the server of a `redis://` URL.
    pub fn to(url: &str) -> Self {
        let addr = url.strip_prefix("redis://").expect("the URL of one server");
        Self::to_addr(addr.split(['/', '?']).next().unwrap())
    }

    /// Connects to `HOST:PORT`.
    pub fn to_addr(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }

    fn send(&mut self, parts: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.write_all(&bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// Sends a command, and returns the reply as text; a list is one line per item. Panics if the reply is an
    /// error.
    pub fn ask(&mut self, parts: &[&[u8]]) -> String {
        self.send(parts);
        self.reply()
    }

    fn reply(&mut self) -> String {
        let line = self.line();
        match line.split_at(1) {
            ("$", "-1") => "(nil)".into(),
            ("$", length) => {
                let mut text = vec![0; length.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut text).unwrap();
                text.truncate(text.len() - 2);
                String::from_utf8_lossy(&text).into_owned()
            }
            ("*", items) => (0..items.parse().unwrap()).map(|_| self.reply() + "\n").collect(),
            ("+" | ":", text) => text.to_owned(),
            _ => panic!("{line}"),
        }
    }

    /// Like [`ask`](Self::ask), for a command whose parts are separated by spaces.
    pub fn words(&mut self, command: &str) -> String {
        let parts: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.ask(&parts)
    }
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
    /// A server that writes every command to its file, with these options of the command line.
    pub fn start(options: &[&str]) -> Self {
        let defaults = ["--save", "", "--appendonly", "yes", "--slowlog-log-slower-than", "-1"]
            .iter()
            .chain(options)
            .map(|text| (*text).to_owned());
        Self::run(tempfile::tempdir().unwrap(), free_port(), defaults.collect())
    }

    /// A sentinel.
    pub fn sentinel(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        fs::write(&file, config).unwrap();
        Self::run(folder, free_port(), vec!["--sentinel".into()])
    }

    fn run(folder: TempDir, port: u16, options: Vec<String>) -> Self {
        let (process, guard) = Self::spawn(folder.path(), port, &options);
        Self { process, guard, port, folder, options }
    }

    fn spawn(folder: &Path, port: u16, options: &[String]) -> (Child, Child) {
        let mut command = Command::new("redis-server");
        if options[0] == "--sentinel" {
            command.arg(folder.join("sentinel.conf"));
            command.args(["--sentinel", "--port", &port.to_string()]);
        } else {
            command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .arg("--dir")
                .arg(folder)
                .args(options);
        }
        let process = command.stdout(Stdio::null()).spawn().expect(
            "these tests start redis-server: apt-get install redis-server, or brew install redis, and see tests/run",
        );
        let guard = Command::new("sh")
            .args(["-c", "cat >/dev/null; kill -9 \"$0\" 2>/dev/null", &process.id().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        until("redis-server answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        (process, guard)
    }

    /// `HOST:PORT`
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a store.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// A connection for raw commands.
    pub fn raw(&self) -> Raw {
        Raw::to_addr(&self.addr())
    }

    /// kill -9. The data stays.
    pub fn kill(&mut self) {
        drop(self.process.kill());
        self.process.wait().unwrap();
        drop(self.guard.kill());
        self.guard.wait().unwrap();
    }

    /// Starts it again after [`kill`](Self::kill), on its port and its data.
    pub fn restart(&mut self) {
        (self.process, self.guard) = Self::spawn(self.folder.path(), self.port, &self.options);
    }

    /// Stops (`-STOP`) or continues (`-CONT`) it.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Masters that share all hash slots, each with the same number of replicas.
pub struct Cluster {
    /// The masters and replicas.
    pub nodes: Vec<Server>,
}

impl Cluster {
    /// Starts it, with this many replicas for each master.
    pub fn start(masters: usize, replicas: usize) -> Self {
        let nodes: Vec<Server> = (0..masters * (1 + replicas))
            .map(|_| {
                let bus = free_port().to_string();
                let timeout = ["--cluster-node-timeout", "500", "--cluster-replica-validity-factor", "0"];
                let basic = ["--cluster-enabled", "yes", "--cluster-port", &bus];
                Server::start(&[&basic[..], &timeout, &["--repl-diskless-sync-delay", "0"]].concat())
            })
            .collect();
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(nodes.iter().map(Server::addr))
            .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
            .output()
            .expect("these tests use redis-cli, which comes with redis-server");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self { nodes };
        cluster.settle();
        cluster
    }

    /// Waits until all servers agree.
    pub fn settle(&self) {
        for node in &self.nodes {
            until("the cluster is formed", || {
                let info = node.raw().words("CLUSTER INFO");
                let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
                info.contains("cluster_state:ok") && info.contains(&known)
            });
        }
    }

    /// The URL of a store.
    pub fn url(&self) -> String {
        let addrs: Vec<String> = self.nodes.iter().map(Server::addr).collect();
        format!("redis-cluster://{}", addrs.join(","))
    }
}

/// A master, a replica, and three sentinels that watch them.
pub struct Sentinels {
    /// The first master and its replica.
    pub servers: Vec<Server>,
    /// The sentinels.
    pub sentinels: Vec<Server>,
}

impl Sentinels {
    /// Starts them, and waits until the sentinels know the replica and one another.
    pub fn start() -> Self {
        let master = Server::start(&["--repl-diskless-sync-delay", "0"]);
        let port = master.port.to_string();
        let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {port}")]);
        until("the replica follows", || {
            replica.raw().words("INFO replication").contains("master_link_status:up")
        });
        let config = format!(
            "sentinel monitor mymaster 127.0.0.1 {port} 2\nsentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 3000\n"
        );
        let sentinels: Vec<Server> = (0..3).map(|_| Server::sentinel(&config)).collect();
        for sentinel in &sentinels {
            until("the sentinels know each other", || {
                let known = sentinel.raw().words("SENTINEL MASTER mymaster");
                known.contains("num-other-sentinels\n2\n") && known.contains("num-slaves\n1\n")
            });
        }
        Self { servers: vec![master, replica], sentinels }
    }

    /// The address of the master, as the sentinels report it.
    pub fn master(&self) -> String {
        let place = self.sentinels[0].raw().words("SENTINEL GET-MASTER-ADDR-BY-NAME mymaster");
        place.trim_end().replace('\n', ":")
    }

    /// Kills the first master, and waits until the sentinels have made the replica the master.
    pub fn fail_over(&mut self) {
        self.servers[0].kill();
        self.await_failover();
    }

    /// Waits until the replica is the master.
    pub fn await_failover(&self) {
        until("a failover", || self.master() == self.servers[1].addr());
        until("the replica is the master", || self.servers[1].raw().words("ROLE").starts_with("master"));
    }

    /// The URL of a store.
    pub fn url(&self) -> String {
        let addrs: Vec<String> = self.sentinels.iter().map(Server::addr).collect();
        format!("redis+sentinel://{}/mymaster", addrs.join(","))
    }
}

/// A server that accepts TLS connections from clients with a certificate of its authority.
pub struct Tls {
    server: Server,
    port: u16,
    folder: TempDir,
}

impl Tls {
    /// Starts it.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with these options of the command line.
    pub fn start_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for authority in ["ca", "stranger"] {
            Self::openssl(
                folder.path(),
                &format!(
                    "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=authority -keyout {authority}.key -out {authority}.pem"
                ),
            );
        }
        for (file, host) in [("names", "localhost"), ("elsewhere", "elsewhere")] {
            fs::write(folder.path().join(file), format!("subjectAltName=DNS:{host}\n")).unwrap();
        }
        for who in ["server", "client"] {
            Self::openssl(
                folder.path(),
                &format!("req -newkey rsa:2048 -nodes -subj /CN={who} -keyout {who}.key -out {who}.csr"),
            );
            Self::openssl(
                folder.path(),
                &format!(
                    "x509 -req -in {who}.csr -days 1 -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out {who}.pem"
                ),
            );
        }
        // Others of the server's key: its own authority; of X.509 version 1; expired; for another host.
        let own = "req -x509 -key server.key -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost -out self.pem";
        Self::openssl(folder.path(), own);
        for (name, extra) in [
            ("old", "-days 1"),
            ("stale", "-days -1 -extfile names"),
            ("elsewhere", "-days 1 -extfile elsewhere"),
        ] {
            let signed = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial";
            Self::openssl(folder.path(), &format!("{signed} {extra} -out {name}.pem"));
        }
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        // The plain port stays open for the test's own commands.
        let port = free_port();
        let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        let port_text = port.to_string();
        let tls = [
            "--tls-port",
            &port_text,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
        ];
        let server = Server::start(&[&tls[..], options].concat());
        until("redis-server answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { server, port, folder }
    }

    fn openssl(folder: &Path, line: &str) {
        let made = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(folder)
            .output()
            .expect("these tests make certificates: apt-get install openssl, or brew install openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// A file in the directory of the certificates.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `rediss://HOST:PORT`
    pub fn at(&self, host: &str) -> String {
        format!("rediss://{host}:{}", self.port)
    }

    /// The URL of a store.
    pub fn url(&self) -> String {
        self.url_with("ca.pem")
    }

    /// The same with another file of trusted certificates.
    pub fn url_with(&self, ca: &str) -> String {
        format!("{}?tls_ca={}&{}", self.at("localhost"), self.file(ca).display(), self.client())
    }

    /// The options of the client's certificate.
    pub fn client(&self) -> String {
        format!(
            "tls_cert={}&tls_key={}",
            self.file("client.pem").display(),
            self.file("client.key").display()
        )
    }

    /// Presents another certificate to new connections.
    pub fn show(&self, name: &str) {
        self.raw().words(&format!("CONFIG SET tls-cert-file {}", self.file(name).display()));
    }

    /// `HOST:PORT`, of the port that speaks TLS.
    pub fn tls_addr(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }

    /// A connection for raw commands, without TLS.
    pub fn raw(&self) -> Raw {
        self.server.raw()
    }
}
