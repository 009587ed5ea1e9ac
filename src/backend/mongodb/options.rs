//! [`MongoDbOptions`]: where the servers are and how they are spoken to.

use std::{path::PathBuf, time::Duration};

use mongodb::options::{
    Acknowledgment, AuthMechanism, ClientOptions, Credential, ReadConcern, ReadPreference, SelectionCriteria,
    ServerAddress, Tls, TlsOptions, WriteConcern,
};
use serde::Deserialize;

use super::error;
use crate::{
    DEFAULT_DEADLINE, Error, ErrorKind, Result, Secret,
    backend::remote::Effect,
    codec::{
        Location, boolean, decode, duration, host_and_port, is_this_machine, number, readable, unknown_option,
    },
};

/// How a [`MongoDb`](crate::MongoDb) store is opened.
///
/// As a URL: `mongodb://user:password@host1:27017,host2/database?replicaSet=rs0&tls=true`, or `mongodb+srv://name/database`, with
/// the options of [MongoDB's connection strings](https://www.mongodb.com/docs/manual/reference/connection-string-options/) that
/// are named below, and `deadline` and `create`. The parts of the URL and the option values may be percent-encoded.
/// Deserialized, the fields have the names below, and unknown ones are refused. Reads go to the primary, so `readPreference` may be
/// anything but `secondary`. Accepted without effect: `compressors`, `heartbeatFrequencyMS`, `localThresholdMS`, `maxConnecting`,
/// `minPoolSize`, `serverMonitoringMode`, `socketTimeoutMS`, `uuidRepresentation`, `waitQueueTimeoutMS`, `wtimeoutMS` and
/// `zlibCompressionLevel`.
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::{mongodb::WriteLevel, MongoDbOptions};
/// let config = MongoDbOptions::try_from("mongodb://app:x@db1,db2:27018/gateway?replicaSet=rs0&maxPoolSize=20")?;
/// assert_eq!((config.database.as_str(), config.pool_size), ("gateway", 20));
/// assert_eq!(config.write_concern, WriteLevel::Majority);
/// assert!(!format!("{config:?}").contains("\"x\""));
///
/// let config: MongoDbOptions = serde_json::from_str(r#"{ "addr": "db1", "replica_set": "rs0", "deadline": "3s" }"#).unwrap();
/// assert_eq!(config.deadline, Duration::from_secs(3));
/// # Ok::<(), gateway_storage::Error>(())
/// ```
#[doc = ""]
#[doc = include_str!("providers.md")]
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MongoDbOptions {
    /// `host`, `host:port` or `[ipv6]:port`; several, separated by commas: members of one replica set, or routers of one
    /// cluster. With `srv`, the name that lists them. Or the path of a socket, in a URL percent-encoded:
    /// `mongodb://%2Ftmp%2Fmongodb-27017.sock/database`. Default: `localhost:27017`.
    pub addr: String,
    /// Whether `addr` is a name whose SRV records list the servers: `mongodb+srv://`. It turns TLS on.
    pub srv: bool,
    /// The user. None: no login.
    pub user: Option<String>,
    /// Its password. `password_file`, `password_env`. The driver takes it once: its source is asked again when a server refuses
    /// the login of a new connection, or the pool is resized, and one that differs is used from then on.
    pub password: Option<Secret>,
    /// The database that knows the user. `authSource`. None: the one that the URL names; with `srv` the one that its TXT record
    /// names; or `admin`.
    pub auth_source: Option<String>,
    /// How the user logs in: `SCRAM-SHA-256`, `SCRAM-SHA-1`, `PLAIN` (LDAP) or `MONGODB-X509`. `authMechanism`. None: the
    /// best that the server has.
    pub auth_mechanism: Option<String>,
    /// The database that holds our collections. Default: `gateway_storage`.
    pub database: String,
    /// The replica set's name. `replicaSet`. None: any.
    pub replica_set: Option<String>,
    /// Whether only the server at `addr` is spoken to, and other members of its set are not looked for.
    /// `directConnection`.
    pub direct_connection: bool,
    /// Whether connections are TLS. The server's certificate must be signed for the host by somebody we trust.
    pub tls: bool,
    /// A file of certificates (PEM) that are trusted. `tlsCAFile`. None: those that this machine trusts (with
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR`, if they are set). The driver takes them from a file only, so they are written to a
    /// private one in the folder for temporary files, which is removed as soon as the driver has read it. A self-signed
    /// certificate that is an authority's (CA:TRUE) is refused also in this file: make one with basicConstraints=CA:FALSE.
    pub tls_ca_file: Option<PathBuf>,
    /// A file with our own certificate and its private key (PEM). `tlsCertificateKeyFile`.
    pub tls_certificate_key_file: Option<PathBuf>,
    /// Whether any certificate is accepted, so that whoever is in between can read everything.
    /// `tlsAllowInvalidCertificates`.
    pub tls_allow_invalid_certificates: bool,
    /// The name that the server's log and `currentOp` show. `appName`. Default: `gateway-storage`.
    pub app_name: String,
    /// The most connections to the server that takes writes. `maxPoolSize`. Default: 10.
    pub pool_size: u32,
    /// How long a connection may take to open. `connectTimeoutMS`. Default: 5 s.
    #[serde(with = "readable")]
    pub connect_timeout: Duration,
    /// How long a call waits for a server that takes writes, while none is known: an election takes some seconds.
    /// `serverSelectionTimeoutMS`. Default: 10 s; the deadline may end it earlier.
    #[serde(with = "readable")]
    pub server_selection_timeout: Duration,
    /// When a connection that nobody uses is closed. Zero: never. `maxIdleTimeMS`. Default: 10 min.
    #[serde(with = "readable")]
    pub idle_timeout: Duration,
    /// Which members of the replica set must have a write before it is `Ok`. `w`. Default: [`WriteLevel::Majority`].
    pub write_concern: WriteLevel,
    /// Whether they must have it in their journals. `journal`. Default: true.
    pub journal: bool,
    /// Whether the driver sends a single write once more, under the same number, if its connection is lost. Servers that only
    /// speak MongoDB's language may not know such numbers. `retryWrites`. Default: true.
    pub retry_writes: bool,
    /// Whether the driver sends a read once more if its connection is lost. `retryReads`. Default: true.
    pub retry_reads: bool,
    /// What a read may see. `readConcernLevel`. Default: [`ReadLevel::Majority`]. Transactions read a snapshot of what the majority
    /// has, whatever this says. Lists, batches of reads and exports see one moment only if this and the write concern are
    /// the majority: otherwise they would not show what was just written.
    pub read_concern: ReadLevel,
    /// How long a call may take as a whole. Default: [`DEFAULT_DEADLINE`].
    #[serde(with = "readable")]
    pub deadline: Duration,
    /// Whether the collections and indexes are made if they are missing. Default: true.
    pub create: bool,
}

/// Which members of a replica set must have a write before it is `Ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteLevel {
    /// The majority: no failover loses it.
    Majority,
    /// This many, the primary among them. At least one.
    Members(u32),
}

/// What a read may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadLevel {
    /// What the majority has: no failover takes it back.
    Majority,
    /// What the primary has, although a failover may take it back.
    Local,
    /// What the majority has, and the primary proves with each read that it still is one.
    Linearizable,
}

const READ_LEVELS: [(&str, ReadLevel); 3] = [
    ("linearizable", ReadLevel::Linearizable),
    ("local", ReadLevel::Local),
    ("majority", ReadLevel::Majority),
];

const DEFAULT_PORT: u16 = 27017;

impl Default for MongoDbOptions {
    fn default() -> Self {
        Self {
            addr: "localhost:27017".to_owned(),
            srv: false,
            user: None,
            password: None,
            auth_source: None,
            auth_mechanism: None,
            database: "gateway_storage".to_owned(),
            replica_set: None,
            direct_connection: false,
            tls: false,
            tls_ca_file: None,
            tls_certificate_key_file: None,
            tls_allow_invalid_certificates: false,
            app_name: "gateway-storage".to_owned(),
            pool_size: 10,
            connect_timeout: Duration::from_secs(5),
            server_selection_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10 * 60),
            write_concern: WriteLevel::Majority,
            journal: true,
            retry_writes: true,
            retry_reads: true,
            read_concern: ReadLevel::Majority,
            deadline: DEFAULT_DEADLINE,
            create: true,
        }
    }
}

/// As MongoDB spells them; case does not matter there.
const OPTIONS: [&str; 24] = [
    "appName",
    "authMechanism",
    "authSource",
    "connectTimeoutMS",
    "create",
    "deadline",
    "directConnection",
    "j",
    "journal",
    "maxIdleTimeMS",
    "maxPoolSize",
    "password_env",
    "password_file",
    "readConcernLevel",
    "replicaSet",
    "retryReads",
    "retryWrites",
    "serverSelectionTimeoutMS",
    "ssl",
    "tls",
    "tlsAllowInvalidCertificates",
    "tlsCAFile",
    "tlsCertificateKeyFile",
    "w",
];

/// Options that tune what this backend does in its own way, or negotiates: without effect here.
const WITHOUT_EFFECT: [&str; 11] = [
    "compressors",
    "heartbeatFrequencyMS",
    "localThresholdMS",
    "maxConnecting",
    "minPoolSize",
    "serverMonitoringMode",
    "socketTimeoutMS",
    "uuidRepresentation",
    "waitQueueTimeoutMS",
    "wtimeoutMS",
    "zlibCompressionLevel",
];

/// Options of which these values change nothing, and what is said of others.
const REFUSED: [(&str, &[&str], &str); 5] = [
    (
        "authMechanismProperties",
        &[],
        "belongs to logins that this backend does not have (Kerberos, AWS, OIDC): take it away, and give a user and a password",
    ),
    ("loadBalanced", &["false"], "is not supported: name the routers or members themselves"),
    (
        "readPreference",
        &["primary", "primaryPreferred", "secondaryPreferred", "nearest"],
        "asks for reads that the primary does not answer, and here all go to it: take it away",
    ),
    (
        "tlsAllowInvalidHostnames",
        &["false"],
        "is not supported: connect by a name that is in the server's certificate",
    ),
    (
        "tlsInsecure",
        &["false"],
        "is not supported: name the certificate's authority in `tlsCAFile`; `tlsAllowInvalidCertificates=true` checks nothing",
    ),
];

fn other_option(name: &str, value: &str) -> Result<()> {
    if WITHOUT_EFFECT.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    match REFUSED.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)) {
        Some((_, harmless, _)) if harmless.contains(&value) => Ok(()),
        Some((known, _, why)) => Err(invalid(format!("the URL option `{known}` {why}"))),
        None => Err(unknown_option(name, &OPTIONS)),
    }
}

impl TryFrom<&str> for MongoDbOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, &["mongodb", "mongodb+srv"])?;
        let srv = location.scheme == "mongodb+srv";
        let mut config = Self { srv, tls: srv, ..Self::default() };
        config.place(location.rest)?;
        for option in location.options() {
            let (name, value) = option?;
            let Some(name) = OPTIONS.into_iter().find(|known| known.eq_ignore_ascii_case(name)) else {
                other_option(name, &decode(value)?)?;
                continue;
            };
            match name {
                "appName" => config.app_name = decode(value)?,
                "authMechanism" => {
                    config.auth_mechanism = Some(decode(value)?).filter(|name| name != "DEFAULT")
                }
                "authSource" => config.auth_source = Some(decode(value)?),
                "connectTimeoutMS" => config.connect_timeout = milliseconds(name, value)?,
                "create" => config.create = boolean(name, value)?,
                "deadline" => config.deadline = duration(name, value)?,
                "directConnection" => config.direct_connection = boolean(name, value)?,
                "j" | "journal" => config.journal = boolean(name, value)?,
                "maxIdleTimeMS" => config.idle_timeout = milliseconds(name, value)?,
                "maxPoolSize" => config.pool_size = number(name, value)?,
                "password_env" => Secret::env(decode(value)?).fill(&mut config.password)?,
                "password_file" => Secret::file(decode(value)?).fill(&mut config.password)?,
                "readConcernLevel" => config.read_concern = read_level(value)?,
                "replicaSet" => config.replica_set = Some(decode(value)?),
                "retryReads" => config.retry_reads = boolean(name, value)?,
                "retryWrites" => config.retry_writes = boolean(name, value)?,
                "serverSelectionTimeoutMS" => config.server_selection_timeout = milliseconds(name, value)?,
                "ssl" | "tls" => config.tls = boolean(name, value)?,
                "tlsAllowInvalidCertificates" => {
                    config.tls_allow_invalid_certificates = boolean(name, value)?;
                }
                "tlsCAFile" => config.tls_ca_file = Some(decode(value)?.into()),
                "tlsCertificateKeyFile" => config.tls_certificate_key_file = Some(decode(value)?.into()),
                _ => config.write_concern = write_level(name, value)?,
            }
        }
        Ok(config)
    }
}

impl MongoDbOptions {
    /// The defaults, for the servers at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }

    /// `//[user[:password]@]host[:port][,...][/database]`
    fn place(&mut self, rest: &str) -> Result<()> {
        let wrong =
            || invalid("a MongoDB URL is `mongodb://[USER:PASSWORD@]HOST[:PORT][,HOST...][/DATABASE]`");
        let rest = rest.strip_prefix("//").ok_or_else(wrong)?;
        let (login, place) =
            rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            if user.is_empty() {
                return Err(invalid("a MongoDB URL with a password has a user, too"));
            }
            self.user = Some(decode(user)?);
            self.password = password.map(decode).transpose()?.map(Secret::from);
        }
        let (addr, database) = place.split_once('/').unwrap_or((place, ""));
        if addr.is_empty() || database.contains('/') {
            return Err(wrong());
        }
        self.addr = decode(addr)?;
        if !database.is_empty() {
            self.database = decode(database)?;
            // With SRV records it is theirs to say.
            self.auth_source = Some(self.database.clone()).filter(|_| !self.srv);
        }
        Ok(())
    }

    /// What the driver is told. For a name with SRV records this asks the DNS.
    pub(super) async fn driver_options(
        &self,
        pool_size: u32,
        password: Option<String>,
    ) -> Result<ClientOptions> {
        self.check_database()?;
        let mut options = if self.srv {
            // A login, so that the driver tells which database the TXT record names for it.
            let url = format!("mongodb+srv://x:x@{}/", self.addr);
            let found = ClientOptions::parse(url).await;
            found.map_err(|error| error::of_request(&error, Effect::Read))?
        } else {
            ClientOptions::builder().hosts(self.servers()?).build()
        };
        options.app_name = Some(self.app_name.clone());
        let named = options.credential.take().and_then(|login| login.source);
        if self.user.is_some() || self.auth_mechanism.as_deref() == Some("MONGODB-X509") {
            options.credential = Some(self.credential(password, named)?);
        }
        if self.replica_set.is_some() {
            options.repl_set_name.clone_from(&self.replica_set);
        }
        options.direct_connection = Some(self.direct_connection);
        options.tls = Some(self.tls_options());
        options.max_pool_size = Some(pool_size);
        options.max_connecting = Some(pool_size);
        options.connect_timeout = Some(self.connect_timeout);
        options.server_selection_timeout = Some(self.server_selection_timeout);
        options.max_idle_time = Some(self.idle_timeout);
        options.retry_writes = Some(self.retry_writes);
        options.retry_reads = Some(self.retry_reads);
        options.write_concern = Some(self.write_concern()?);
        options.read_concern = Some(match self.read_concern {
            ReadLevel::Majority => ReadConcern::majority(),
            ReadLevel::Local => ReadConcern::local(),
            ReadLevel::Linearizable => ReadConcern::linearizable(),
        });
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        Ok(options)
    }

    /// The password, as its source gives it now.
    pub(super) async fn password_now(&self) -> Result<Option<String>> {
        match &self.password {
            Some(password) => password.reveal().await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn wants_snapshots(&self) -> bool {
        self.read_concern == ReadLevel::Majority && self.write_concern == WriteLevel::Majority
    }

    /// Whether our servers are on this machine: those that are named here, and those that they name.
    pub(super) fn is_local<'n>(&'n self, members: impl IntoIterator<Item = &'n str>) -> bool {
        let is_local = |addr: &str| {
            addr.starts_with('/')
                || host_and_port(addr, DEFAULT_PORT).is_some_and(|(host, _)| is_this_machine(&host))
        };
        self.addr.split(',').chain(members).all(is_local)
    }

    fn servers(&self) -> Result<Vec<ServerAddress>> {
        let server = |addr: &str| {
            #[cfg(unix)]
            if addr.starts_with('/') {
                return Ok(ServerAddress::Unix { path: addr.into() });
            }
            let (host, port) = host_and_port(addr, DEFAULT_PORT)
                .ok_or_else(|| invalid("a MongoDB address is `host`, `host:port` or `[ipv6]:port`"))?;
            Ok(ServerAddress::Tcp { host, port: Some(port) })
        };
        self.addr.split(',').map(server).collect()
    }

    /// `named` is the database that the TXT record names.
    fn credential(&self, password: Option<String>, named: Option<String>) -> Result<Credential> {
        let mut credential = Credential::default();
        credential.username.clone_from(&self.user);
        credential.password = password;
        credential.source = self.auth_source.clone().or(named);
        credential.mechanism = match self.auth_mechanism.as_deref() {
            None => None,
            Some("SCRAM-SHA-1") => Some(AuthMechanism::ScramSha1),
            Some("SCRAM-SHA-256") => Some(AuthMechanism::ScramSha256),
            Some("PLAIN") => Some(AuthMechanism::Plain),
            Some("MONGODB-X509") => Some(AuthMechanism::MongoDbX509),
            Some(_) => {
                return Err(invalid(
                    "`authMechanism` is one of SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, MONGODB-X509",
                ));
            }
        };
        // These users are in no database of the server.
        match credential.mechanism {
            Some(AuthMechanism::MongoDbX509) => credential.source = Some("$external".to_owned()),
            Some(AuthMechanism::Plain) if self.auth_source.is_none() => {
                credential.source = Some("$external".to_owned());
            }
            _ => {}
        }
        Ok(credential)
    }

    fn tls_options(&self) -> Tls {
        if !self.tls {
            return Tls::Disabled;
        }
        let mut options = TlsOptions::default();
        options.ca_file_path.clone_from(&self.tls_ca_file);
        options.cert_key_file_path.clone_from(&self.tls_certificate_key_file);
        options.allow_invalid_certificates = Some(self.tls_allow_invalid_certificates);
        Tls::Enabled(options)
    }

    pub(super) fn trusts_this_machine(&self) -> bool {
        self.tls_ca_file.is_none() && !self.tls_allow_invalid_certificates
    }

    pub(super) fn write_concern(&self) -> Result<WriteConcern> {
        let acknowledgment = match self.write_concern {
            WriteLevel::Majority => Acknowledgment::Majority,
            WriteLevel::Members(0) => return Err(invalid("a write that nobody acknowledges is not stored")),
            WriteLevel::Members(count) => Acknowledgment::Nodes(count),
        };
        Ok(WriteConcern::builder().w(acknowledgment).journal(self.journal).build())
    }

    /// [MongoDB's rules](https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions), those of every system.
    fn check_database(&self) -> Result<()> {
        let fits = (1..=63).contains(&self.database.len())
            && !self.database.contains(|c: char| c.is_control() || "/\\. \"$*<>:|?".contains(c));
        if !fits {
            return Err(invalid(
                "the name of a MongoDB database has 1 to 63 bytes, no control characters, spaces or any of /\\.\"$*<>:|?",
            ));
        }
        Ok(())
    }
}

fn milliseconds(name: &str, text: &str) -> Result<Duration> {
    number(name, text).map(Duration::from_millis)
}

fn read_level(text: &str) -> Result<ReadLevel> {
    let level = READ_LEVELS.iter().find(|(word, _)| *word == text);
    level
        .map(|(_, level)| *level)
        .ok_or_else(|| invalid("the URL option `readConcernLevel` is linearizable, local or majority"))
}

fn write_level(name: &str, text: &str) -> Result<WriteLevel> {
    match text {
        "majority" => Ok(WriteLevel::Majority),
        count => count
            .parse()
            .map(WriteLevel::Members)
            .map_err(|_| invalid(format!("the URL option `{name}` is `majority` or a number of members"))),
    }
}

#[cold]
fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidValue, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let config = MongoDbOptions::try_from(
            "mongodb://alice:p%40ss%3a@db1,db2:27018,[::1]:1/gateway?replicaset=rs0&authSource=admin&w=2&journal=false\
             &readConcernLevel=local&connectTimeoutMS=250&deadline=3s&tls=true&tlsCAFile=%2Fca.pem&create=false",
        )
        .unwrap();
        let expected = MongoDbOptions {
            user: Some("alice".into()),
            password: Some("p@ss:".into()),
            auth_source: Some("admin".into()),
            database: "gateway".into(),
            replica_set: Some("rs0".into()),
            write_concern: WriteLevel::Members(2),
            journal: false,
            read_concern: ReadLevel::Local,
            connect_timeout: Duration::from_millis(250),
            deadline: Duration::from_secs(3),
            tls: true,
            tls_ca_file: Some("/ca.pem".into()),
            create: false,
            ..MongoDbOptions::new("db1,db2:27018,[::1]:1")
        };
        assert_eq!(config, expected);
        assert!(!format!("{config:?}").contains("p@ss"));
        let servers: Vec<String> = config.servers().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(servers.len(), 3);
        assert_eq!(&servers[..2], ["db1:27017", "db2:27018"]);

        // As Atlas gives it to its users.
        let atlas = "mongodb+srv://u:p@cluster.example.com/?retryWrites=true&w=majority&appName=Cluster0";
        assert_eq!(MongoDbOptions::try_from(atlas).unwrap().app_name, "Cluster0");
        let config = MongoDbOptions::try_from("mongodb+srv://u:p@cluster.example.com/?tls=false").unwrap();
        assert_eq!((config.srv, config.tls, config.addr.as_str()), (true, false, "cluster.example.com"));
        assert_eq!((config.auth_source, config.database.as_str()), (None, "gateway_storage"));
        assert!(MongoDbOptions::try_from("mongodb+srv://name").unwrap().tls);
    }

    #[test]
    fn options_of_other_clients() {
        let read = |options: &str| MongoDbOptions::try_from(format!("mongodb://u:p@h/db?{options}").as_str());
        for harmless in [
            "readPreference=secondaryPreferred&retryWrites=false",
            "readpreference=primary&compressors=zstd,snappy&minPoolSize=5&maxConnecting=2&wtimeoutMS=2500",
            "loadBalanced=false&tlsInsecure=false&tlsAllowInvalidHostnames=false&uuidRepresentation=standard",
            "socketTimeoutMS=1000&heartbeatFrequencyMS=5000",
        ] {
            assert!(read(harmless).is_ok(), "{harmless}");
        }
        assert_eq!(read("authMechanism=DEFAULT&j=false").unwrap().auth_mechanism, None);
        assert!(!read("j=false").unwrap().journal);
        for (option, name) in [
            ("readPreference=secondary", "`readPreference`"),
            ("AUTHMECHANISMPROPERTIES=hunter2", "`authMechanismProperties`"),
            ("loadBalanced=true", "`loadBalanced`"),
            ("tlsInsecure=true", "`tlsInsecure`"),
            ("tlsAllowInvalidHostnames=hunter2", "`tlsAllowInvalidHostnames`"),
            ("srvServiceName=x", "`srvServiceName`"),
            ("password_file=/x", "two passwords"),
        ] {
            let error = read(option).unwrap_err();
            assert!(error.to_string().contains(name) && !error.to_string().contains("hunter2"), "{error}");
        }
        let of_file = MongoDbOptions::try_from("mongodb://u@h/db?PASSWORD_FILE=%2Fx").unwrap();
        assert_eq!(of_file.password, Some(Secret::file("/x")));
    }

    #[cfg(unix)]
    #[test]
    fn sockets() {
        let config = MongoDbOptions::try_from("mongodb://%2Ftmp%2Fmongodb-27017.sock/db").unwrap();
        let path = "/tmp/mongodb-27017.sock".into();
        assert_eq!(config.servers().unwrap(), [ServerAddress::Unix { path }]);
        assert!(config.is_local([]));
    }

    #[tokio::test]
    async fn wrong_ones_repeat_nothing() {
        for url in [
            "redis:secret",
            "mongodb:secret",
            "mongodb://",
            "mongodb://:secret@host",
            "mongodb://:secret@host/a/secret",
            "mongodb://:secret%4@host",
            "mongodb://host?w=secret",
            "mongodb://host?maxPoolSize=secret",
            "mongodb://host?readConcernLevel=secret",
            "mongodb://host?connectTimeoutMS=5secret",
            "mongodb://host?Secret=1",
            "mongodb://host?secret",
        ] {
            let error = MongoDbOptions::try_from(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{url}");
            assert!(!format!("{error:?}").contains("ecret"), "{error:?}");
        }
        for url in [
            "mongodb://host:secret",
            "mongodb://u@host/?authMechanism=secret",
            "mongodb://host?w=0",
            "mongodb://host/a.secret",
            "mongodb://host/%00secret",
        ] {
            let error = MongoDbOptions::try_from(url).unwrap().driver_options(1, None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{url}");
            assert!(!format!("{error:?}").contains("ecret"), "{error:?}");
        }
    }

    #[test]
    fn typed() {
        let config: MongoDbOptions = serde_json::from_str(
            r#"{"addr":"h:1","password":"hunter2","write_concern":{"members":3},"read_concern":"linearizable"}"#,
        )
        .unwrap();
        assert_eq!(config.write_concern, WriteLevel::Members(3));
        assert_eq!(config.read_concern, ReadLevel::Linearizable);
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(serde_json::from_str::<MongoDbOptions>(r#"{"adr":"h:1"}"#).is_err());
    }
}
