//! [`MongoDbOptions`]: where the servers are, and how they are used.

use std::{path::PathBuf, time::Duration};

use mongodb::options::{
    Acknowledgment, AuthMechanism, ClientOptions, Credential, ReadConcern, ReadPreference, SelectionCriteria,
    ServerAddress, Tls, TlsOptions, WriteConcern,
};
use serde::Deserialize;

use super::error;
use crate::{
    DEFAULT_DEADLINE, Error, Result, Secret,
    backend::remote::Effect,
    codec::{
        Location, UrlOptions, canonical_hosts, from_texts, host_and_port, invalid, is_this_machine, options,
        readable,
    },
};

options! {
    /// Options for opening a [`MongoDb`](crate::MongoDb) store.
    ///
    /// As a URL: `mongodb://user:password@host1:27017,host2/database?replicaSet=rs0&tls=true`, or
    /// `mongodb+srv://name/database`, with the options of MongoDB's
    /// [connection strings](https://www.mongodb.com/docs/manual/reference/connection-string-options/) that are
    /// named below, and `deadline` and `create`. The parts of the URL and the values of options may be
    /// percent-encoded. When deserialized, the fields have the names below, and unknown fields are refused.
    /// Reads go to the primary, so `readPreference` may have any value but `secondary`. Accepted without
    /// effect: `compressors`, `heartbeatFrequencyMS`, `localThresholdMS`, `maxConnecting`, `minPoolSize`,
    /// `serverMonitoringMode`, `socketTimeoutMS`, `uuidRepresentation`, `waitQueueTimeoutMS`, `wtimeoutMS`
    /// and `zlibCompressionLevel`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use gateway_storage::{mongodb::WriteLevel, MongoDbOptions};
    /// let url = "mongodb://app:x@db1,db2:27018/gateway?replicaSet=rs0&maxPoolSize=20";
    /// let options = MongoDbOptions::try_from(url)?;
    /// assert_eq!((options.database.as_str(), options.pool_size), ("gateway", 20));
    /// assert_eq!(options.write_concern, WriteLevel::Majority);
    /// assert!(!format!("{options:?}").contains("\"x\""));
    ///
    /// let options: MongoDbOptions =
    ///     serde_json::from_str(r#"{ "addr": "db1", "replica_set": "rs0", "deadline": "3s" }"#).unwrap();
    /// assert_eq!(options.deadline, Duration::from_secs(3));
    /// # Ok::<(), gateway_storage::Error>(())
    /// ```
    #[doc = ""]
    #[doc = include_str!("providers.md")]
    #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[non_exhaustive]
    pub struct MongoDbOptions {
        /// `host`, `host:port` or `[ipv6]:port`; several, separated by commas, are members of one replica set
        /// or routers of one cluster. With `srv`, the name that lists them. Or the path of a socket,
        /// percent-encoded in a URL: `mongodb://%2Ftmp%2Fmongodb-27017.sock/database`. Default:
        /// `localhost:27017`.
        pub addr: String = "localhost:27017".to_owned(),
        /// Whether `addr` is a name whose SRV records list the servers: `mongodb+srv://`. In a URL it turns
        /// TLS on. Default: `false`.
        pub srv: bool = false,
        /// The user. None: no login.
        pub user: Option<String> = None,
        /// The user's password. `password_file`, `password_env`. The driver takes it once: its source is read
        /// again when a server refuses the login of a new connection, or when the pool is resized, and a
        /// different password is used from then on.
        pub password: Option<Secret> = None,
        /// The database that holds the user. `authSource`. None: with `srv`, the one that its TXT record
        /// names; otherwise `admin`. In a URL without `srv`, the default is the database of the URL.
        pub auth_source: Option<String> = None,
        /// How the user logs in: `SCRAM-SHA-256`, `SCRAM-SHA-1`, `PLAIN` (LDAP) or `MONGODB-X509`.
        /// `authMechanism`. None: the best one that the server has.
        pub auth_mechanism: Option<String> = None,
        /// The database of the store's collections. Default: `gateway_storage`.
        pub database: String = "gateway_storage".to_owned(),
        /// The name of the replica set. `replicaSet`. None: any.
        pub replica_set: Option<String> = None,
        /// Whether only the server at `addr` is used, and not the other members of its replica set.
        /// `directConnection`. Default: `false`.
        pub direct_connection: bool = false,
        /// Whether connections use TLS. The server's certificate must be trusted and be for the host. `tls`
        /// or `ssl`. Default: `false`, and `true` for `mongodb+srv://`.
        pub tls: bool = false,
        /// A file of trusted certificates (PEM). `tlsCAFile`. None: those that this machine trusts (with
        /// `SSL_CERT_FILE` and `SSL_CERT_DIR`, if they are set). The driver reads trusted certificates from a
        /// file only, so those are written to a private file in the directory for temporary files, which is
        /// removed once the driver has read it. A self-signed certificate of an authority (CA:TRUE) is
        /// refused in this file, too: make one with basicConstraints=CA:FALSE.
        pub tls_ca_file: Option<PathBuf> = None,
        /// A file with the client's certificate and its private key (PEM). `tlsCertificateKeyFile`.
        pub tls_certificate_key_file: Option<PathBuf> = None,
        /// Whether any certificate is accepted, so that an attacker in between can read everything.
        /// `tlsAllowInvalidCertificates`. Default: `false`.
        pub tls_allow_invalid_certificates: bool = false,
        /// The name of our connections in the server's log and in `currentOp`. `appName`. Default:
        /// `gateway-storage`.
        pub app_name: String = "gateway-storage".to_owned(),
        /// The most connections to the primary. `maxPoolSize`. Default: 10.
        pub pool_size: u32 = 10,
        /// The time that opening a connection may take. `connectTimeoutMS`. Default: 5 s.
        #[serde(with = "readable")]
        pub connect_timeout: Duration = Duration::from_secs(5),
        /// The time that a call waits while no primary is known: an election takes some seconds. The deadline
        /// may end it earlier. `serverSelectionTimeoutMS`. Default: 10 s.
        #[serde(with = "readable")]
        pub server_selection_timeout: Duration = Duration::from_secs(10),
        /// The time after which an unused connection is closed. Zero: never. `maxIdleTimeMS`. Default: 10
        /// min.
        #[serde(with = "readable")]
        pub idle_timeout: Duration = Duration::from_secs(10 * 60),
        /// The members of the replica set that must have a write before it is `Ok`. `w`. Default:
        /// [`WriteLevel::Majority`].
        pub write_concern: WriteLevel = WriteLevel::Majority,
        /// Whether they must have it in their journals. `journal` or `j`. Default: `true`.
        pub journal: bool = true,
        /// Whether the driver repeats a single write, under the same number, if its connection is lost.
        /// Servers that only imitate MongoDB may not support such numbers. `retryWrites`. Default: `true`.
        pub retry_writes: bool = true,
        /// Whether the driver repeats a read if its connection is lost. `retryReads`. Default: `true`.
        pub retry_reads: bool = true,
        /// The data that a read may return. `readConcernLevel`. Default: [`ReadLevel::Majority`].
        /// Transactions read a snapshot of the data that the majority has, whatever this is. Lists, batches
        /// of reads and exports read a snapshot only if this and the write concern are the majority:
        /// otherwise they would not return the latest writes.
        pub read_concern: ReadLevel = ReadLevel::Majority,
        /// The deadline of each call. Default: [`DEFAULT_DEADLINE`].
        #[serde(with = "readable")]
        pub deadline: Duration = DEFAULT_DEADLINE,
        /// Whether missing collections and indexes are created. Default: `true`.
        pub create: bool = true,
    }
}

/// The members of a replica set that must have a write before it is `Ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WriteLevel {
    /// The majority: no failover loses the write.
    Majority,
    /// This number of members, including the primary. At least one.
    Members(u32),
}

/// The data that a read may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReadLevel {
    /// Data that the majority has: no failover rolls it back.
    Majority,
    /// Data that the primary has, which a failover may roll back.
    Local,
    /// Data that the majority has; the primary confirms with each read that it still is the primary.
    Linearizable,
}

const DEFAULT_PORT: u16 = 27017;

/// MongoDB's names for the fields, in any case, and the names that are ours.
const NAMES: [(&str, &str); 24] = [
    ("appName", "app_name"),
    ("authMechanism", "auth_mechanism"),
    ("authSource", "auth_source"),
    ("connectTimeoutMS", "connect_timeout"),
    ("create", "create"),
    ("deadline", "deadline"),
    ("directConnection", "direct_connection"),
    ("j", "journal"),
    ("journal", "journal"),
    ("maxIdleTimeMS", "idle_timeout"),
    ("maxPoolSize", "pool_size"),
    ("password_env", "password.env"),
    ("password_file", "password.file"),
    ("readConcernLevel", "read_concern"),
    ("replicaSet", "replica_set"),
    ("retryReads", "retry_reads"),
    ("retryWrites", "retry_writes"),
    ("serverSelectionTimeoutMS", "server_selection_timeout"),
    ("ssl", "tls"),
    ("tls", "tls"),
    ("tlsAllowInvalidCertificates", "tls_allow_invalid_certificates"),
    ("tlsCAFile", "tls_ca_file"),
    ("tlsCertificateKeyFile", "tls_certificate_key_file"),
    ("w", "w"),
];

/// The schemes of this backend's URLs.
pub(super) const SCHEMES: &[&str] = &["mongodb", "mongodb+srv"];

from_texts!(MongoDbOptions);

impl TryFrom<&str> for MongoDbOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let wrong =
            || invalid("a MongoDB URL is `mongodb://[USER:PASSWORD@]HOST[:PORT][,HOST...][/DATABASE]`");
        let location = Location::parse(url, SCHEMES)?;
        let parts = location.authority().ok_or_else(wrong)?;
        if parts.user == Some("") {
            return Err(invalid("a MongoDB URL with a password needs a user, too"));
        }
        if parts.hosts.is_empty() || parts.path.contains('/') {
            return Err(wrong());
        }
        let mut options = UrlOptions::named(&NAMES);
        let database = Some(parts.path).filter(|database| !database.is_empty());
        let srv = (location.scheme == "mongodb+srv").then_some("true");
        options.set([
            ("user", parts.user),
            ("password", parts.password),
            ("addr", Some(parts.hosts)),
            ("database", database),
            // With SRV records, the TXT record names it.
            ("auth_source", database.filter(|_| srv.is_none())),
            ("srv", srv),
            ("tls", srv),
        ])?;
        for option in location.options() {
            let (name, value) = option?;
            let known = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            match known.map_or(name, |(known, _)| known) {
                name if is_harmless_elsewhere(name, &value)? => {}
                name if name.ends_with("MS") && known.is_some() => {
                    let milliseconds = value.parse::<u64>();
                    let number = |_| invalid(format!("the URL option `{name}` must be a whole number"));
                    options.add((name, format!("{}ms", milliseconds.map_err(number)?)))?;
                }
                name => options.add((name, value))?,
            }
        }
        let level = options.texts.remove("w").map(|text| write_level(&text)).transpose()?;
        let options: Self = options.read()?;
        Ok(Self {
            write_concern: level.unwrap_or(options.write_concern),
            auth_mechanism: options.auth_mechanism.filter(|name| name != "DEFAULT"),
            ..options
        })
    }
}

/// Whether this is an option of other drivers that has no effect here, or asks for what this backend does
/// anyway.
fn is_harmless_elsewhere(name: &str, value: &str) -> Result<bool> {
    let why = match name.to_ascii_lowercase().as_str() {
        // These tune what this backend tunes itself, or negotiates.
        "compressors"
        | "heartbeatfrequencyms"
        | "localthresholdms"
        | "maxconnecting"
        | "minpoolsize"
        | "servermonitoringmode"
        | "sockettimeoutms"
        | "uuidrepresentation"
        | "waitqueuetimeoutms"
        | "wtimeoutms"
        | "zlibcompressionlevel" => return Ok(true),
        "loadbalanced" | "tlsallowinvalidhostnames" | "tlsinsecure" if value == "false" => return Ok(true),
        "readpreference"
            if matches!(value, "primary" | "primaryPreferred" | "secondaryPreferred" | "nearest") =>
        {
            return Ok(true);
        }
        "authmechanismproperties" => {
            "`authMechanismProperties` belongs to logins that this backend does not support (Kerberos, AWS, OIDC): remove \
             it, and give a user and a password"
        }
        "loadbalanced" => "`loadBalanced` is not supported: name the routers or members themselves",
        "readpreference" => {
            "`readPreference` asks for reads from secondaries, and all reads go to the primary: remove it"
        }
        "tlsallowinvalidhostnames" => {
            "`tlsAllowInvalidHostnames` is not supported: connect by a name that is in the server's certificate"
        }
        "tlsinsecure" => {
            "`tlsInsecure` is not supported: name the certificate's authority in `tlsCAFile`; \
             `tlsAllowInvalidCertificates=true` checks nothing"
        }
        _ => return Ok(false),
    };
    Err(invalid(format!("the URL option {why}")))
}

fn write_level(text: &str) -> Result<WriteLevel> {
    match text {
        "majority" => Ok(WriteLevel::Majority),
        count => count
            .parse()
            .map(WriteLevel::Members)
            .map_err(|_| invalid("the URL option `w` must be `majority` or a number of members")),
    }
}

impl MongoDbOptions {
    /// The defaults, for the servers at this address.
    pub fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), ..Self::default() }
    }

    /// Identifies the store, without its login: equal for two URLs of one store.
    #[doc(hidden)]
    #[must_use]
    pub fn identity(&self) -> String {
        format!("mongodb://{}/{}", canonical_hosts(&self.addr, DEFAULT_PORT), self.database)
    }

    /// The options for the driver. A name with SRV records is looked up in the DNS.
    pub(super) async fn driver_options(
        &self,
        pool_size: u32,
        password: Option<String>,
    ) -> Result<ClientOptions> {
        self.check_database()?;
        let mut options = if self.srv {
            // With a login, because only then the driver returns the database that the TXT record names.
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

    /// The current password.
    pub(super) async fn password_now(&self) -> Result<Option<String>> {
        match &self.password {
            Some(password) => password.reveal().await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn wants_snapshots(&self) -> bool {
        self.read_concern == ReadLevel::Majority && self.write_concern == WriteLevel::Majority
    }

    /// Whether all servers are on this machine: those that `addr` names, and these members.
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
        // These users are not stored in a database of the server.
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
            WriteLevel::Members(0) => {
                return Err(invalid("a write must be acknowledged by one member at least"));
            }
            WriteLevel::Members(count) => Acknowledgment::Nodes(count),
        };
        Ok(WriteConcern::builder().w(acknowledgment).journal(self.journal).build())
    }

    /// Refuses a name that [MongoDB does not
    /// allow](https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions) on every system.
    fn check_database(&self) -> Result<()> {
        let fits = (1..=63).contains(&self.database.len())
            && !self.database.contains(|c: char| c.is_control() || "/\\. \"$*<>:|?".contains(c));
        if !fits {
            return Err(invalid(
                "the name of a MongoDB database must have 1 to 63 bytes, and no control characters, spaces or any of /\\.\"$*<>:|?",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn urls() {
        let options = MongoDbOptions::try_from(
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
        assert_eq!(options, expected);
        assert!(!format!("{options:?}").contains("p@ss"));
        let servers: Vec<String> = options.servers().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(servers.len(), 3);
        assert_eq!(&servers[..2], ["db1:27017", "db2:27018"]);

        // As Atlas gives it to its users.
        let atlas = "mongodb+srv://u:p@cluster.example.com/?retryWrites=true&w=majority&appName=Cluster0";
        assert_eq!(MongoDbOptions::try_from(atlas).unwrap().app_name, "Cluster0");
        let options = MongoDbOptions::try_from("mongodb+srv://u:p@cluster.example.com/?tls=false").unwrap();
        assert_eq!((options.srv, options.tls, options.addr.as_str()), (true, false, "cluster.example.com"));
        assert_eq!((options.auth_source, options.database.as_str()), (None, "gateway_storage"));
        assert!(MongoDbOptions::try_from("mongodb+srv://name").unwrap().tls);
    }

    #[test]
    fn options_of_other_drivers() {
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
        let options = MongoDbOptions::try_from("mongodb://%2Ftmp%2Fmongodb-27017.sock/db").unwrap();
        let path = "/tmp/mongodb-27017.sock".into();
        assert_eq!(options.servers().unwrap(), [ServerAddress::Unix { path }]);
        assert!(options.is_local([]));
    }

    #[tokio::test]
    async fn errors_of_invalid_urls_quote_nothing() {
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
        let options: MongoDbOptions = serde_json::from_str(
            r#"{"addr":"h:1","password":"hunter2","write_concern":{"members":3},"read_concern":"linearizable"}"#,
        )
        .unwrap();
        assert_eq!(options.write_concern, WriteLevel::Members(3));
        assert_eq!(options.read_concern, ReadLevel::Linearizable);
        assert!(!format!("{options:?}").contains("hunter2"));
        assert!(serde_json::from_str::<MongoDbOptions>(r#"{"adr":"h:1"}"#).is_err());
    }
}
