//! The identity of a store: whether two URLs name the same one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf, absolute},
};

#[cfg(feature = "file")]
use gateway_storage::FileOptions;
#[cfg(feature = "mongodb")]
use gateway_storage::MongoDbOptions;
#[cfg(feature = "postgres")]
use gateway_storage::PostgresOptions;
#[cfg(feature = "redis")]
use gateway_storage::{RedisOptions, redis::RedisTopology};

/// Options that do not say which store it is. All others are part of the identity: a missing entry here makes
/// two identities of one store, which is harmless.
const NOT_IDENTIFYING: [&str; 59] = [
    "appname",
    "application_name",
    "author_email",
    "author_name",
    "authmechanism",
    "authsource",
    "client_name",
    "connect_timeout",
    "connecttimeoutms",
    "create",
    "deadline",
    "dial_timeout",
    "directconnection",
    "durability",
    "idle_in_transaction_session_timeout",
    "idle_timeout",
    "interval",
    "isolation",
    "journal",
    "lock_timeout",
    "max_lifetime",
    "maxidletimems",
    "maxpoolsize",
    "min_idle",
    "pgbouncer",
    "pool_size",
    "pull",
    "push",
    "read_only",
    "read_timeout",
    "readconcernlevel",
    "remote",
    "remote_timeout",
    "replicaset",
    "retryreads",
    "retrywrites",
    "sentinel_username",
    "serverselectiontimeoutms",
    "ssh_key",
    "ssl",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement_timeout",
    "tcp_nodelay",
    "tcp_user_timeout",
    "tls",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "tlsallowinvalidcertificates",
    "tlscafile",
    "tlscertificatekeyfile",
    "w",
    "wait",
    "wait_replicas",
    "wait_timeout",
    "write_timeout",
];

/// Parts of the names of options whose values may be secret.
const SECRET: [&str; 4] = ["password", "secret", "token", "properties"];

/// Identifies a store: its URL without passwords and without the options that do not identify it.
pub(crate) fn identity_of(url: &str) -> String {
    let (location, options) = url.split_once('?').unwrap_or((url, ""));
    let Some((scheme, rest)) = location.split_once(':') else { return String::new() };
    // The last of several counts.
    let mut options: BTreeMap<&str, &str> =
        options.split('&').filter_map(|text| text.split_once('=')).collect();
    options.retain(|name, _| {
        let name = name.to_ascii_lowercase();
        !NOT_IDENTIFYING.contains(&&*name) && !SECRET.iter().any(|part| name.contains(part))
    });
    let users = [options.remove("user"), options.remove("username")];
    let location = match (scheme, rest.strip_prefix("//")) {
        ("file" | "git", _) => directory_of(url).unwrap_or_else(|| rest.into()).display().to_string(),
        ("redis+unix", _) | (_, None) => rest.to_owned(),
        (_, Some(rest)) => {
            let (login, host) = rest.rsplit_once('@').unwrap_or(("", rest));
            let (hosts, path) = host.split_once('/').unwrap_or((host, ""));
            if !hosts.split(',').all(is_host) {
                // Perhaps a password with a `?` in it.
                return format!("{scheme}:");
            }
            // Without a name, PostgreSQL uses the user's name for the database.
            if scheme.starts_with("postgres") && path.is_empty() && !options.contains_key("dbname") {
                let user = login.split(':').next().filter(|user| !user.is_empty());
                options.extend(users[0].or(user).map(|user| ("user", user)));
            }
            format!("//{host}")
        }
    };
    let options: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{scheme}:{location}{mark}{}", options.join("&"))
}

/// The scheme, host and path of a server, for errors. Errors of a store in a directory name it themselves.
pub(crate) fn server_of(url: &str) -> Option<String> {
    let (_, options) = url.split_once('?').unwrap_or((url, ""));
    let identity = identity_of(url);
    let location = identity.split('?').next().filter(|location| location.contains("://"))?;
    // With a `?` in the password, the login ends within the options.
    (!options.contains('@')).then(|| location.to_owned())
}

/// Whether a path is in the directory of a store.
pub(crate) fn contains(url: &str, path: &Path) -> bool {
    directory_of(url).zip(absolute_path(path)).is_some_and(|(store, path)| path.starts_with(store))
}

/// Whether this is a host name or an address, with or without a port.
fn is_host(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((_, port)) if !text.ends_with(']') => port.bytes().all(|byte| byte.is_ascii_digit()),
        _ => true,
    }
}

/// Whether two URLs are known to name the same store.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    let servers = redis(one).or_else(|| database(one)).zip(redis(other).or_else(|| database(other)));
    let folders = directory_of(one).zip(directory_of(other));
    servers.is_some_and(|(one, other)| one == other) || folders.is_some_and(|(one, other)| one == other)
}

/// Whether the target is within the legacy data of the source: a subdirectory, or keys of the same Redis
/// database. In PostgreSQL and MongoDB the legacy data has tables or collections of its own.
pub(crate) fn is_within(source: &str, target: &str) -> bool {
    let folders = directory_of(source).zip(directory_of(target));
    redis(source).is_some_and(|source| redis(target) == Some(source))
        || folders.is_some_and(|(source, target)| target.starts_with(source))
}

/// The location of a store on a server.
#[derive(PartialEq, Eq)]
struct StoreId {
    backend: &'static str,
    hosts: String,
    database: String,
    namespace: String,
}

#[cfg(not(feature = "redis"))]
fn redis(_: &str) -> Option<StoreId> {
    None
}

#[cfg(feature = "redis")]
fn redis(url: &str) -> Option<StoreId> {
    let RedisOptions { addr, db, prefix, topology, .. } = RedisOptions::try_from(url).ok()?;
    let (port, master) = match topology {
        RedisTopology::Sentinel(sentinel) => ("26379", sentinel.master),
        _ => ("6379", String::new()),
    };
    Some(StoreId {
        backend: "redis",
        hosts: hosts(&addr, port),
        database: format!("{master}/{db}"),
        namespace: prefix,
    })
}

fn database(url: &str) -> Option<StoreId> {
    #[cfg(feature = "postgres")]
    let postgres = || {
        let PostgresOptions { addr, user, dbname, schema, .. } = PostgresOptions::try_from(url).ok()?;
        // As in `identity_of`.
        let database = dbname.or(user).unwrap_or_default();
        Some(StoreId { backend: "postgres", hosts: hosts(&addr, "5432"), database, namespace: schema })
    };
    #[cfg(feature = "mongodb")]
    let mongodb = || {
        let MongoDbOptions { addr, database, .. } = MongoDbOptions::try_from(url).ok()?;
        Some(StoreId { backend: "mongodb", hosts: hosts(&addr, "27017"), database, namespace: String::new() })
    };
    #[cfg(not(feature = "postgres"))]
    let postgres = || None;
    #[cfg(not(feature = "mongodb"))]
    let mongodb = || None;
    postgres().or_else(mongodb)
}

/// Normalizes hosts: each with its port, and `localhost` as `127.0.0.1`.
fn hosts(names: &str, port: &str) -> String {
    let whole = |name: &str| {
        let (name, port) = name.rsplit_once(':').filter(|_| !name.ends_with(']')).unwrap_or((name, port));
        format!("{}:{port}", if name == "localhost" { "127.0.0.1" } else { name })
    };
    names.split(',').map(whole).collect::<Vec<_>>().join(",")
}

/// The directory of a store on disk, with links resolved.
fn directory_of(url: &str) -> Option<PathBuf> {
    let path: PathBuf = match url.strip_prefix("git:") {
        Some(rest) => rest.split('?').next()?.into(),
        #[cfg(feature = "file")]
        None => FileOptions::try_from(url).ok()?.path,
        #[cfg(not(feature = "file"))]
        None => return None,
    };
    absolute_path(&path)
}

/// An absolute path with the links of its existing part resolved.
fn absolute_path(path: &Path) -> Option<PathBuf> {
    let path = absolute(path).ok()?;
    path.ancestors().find_map(|above| Some(above.canonicalize().ok()?.join(path.strip_prefix(above).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_names_the_store_without_secrets() {
        for (url, wanted) in [
            ("redis://user:p@ss@host:1/0?prefix=a:&read_timeout=1s", "redis://host:1/0?prefix=a:"),
            ("redis+unix:///run/a@b/redis.sock?db=1", "redis+unix:///run/a@b/redis.sock?db=1"),
            ("postgres://u:hunter2@h/db?password=x&schema=s", "postgres://h/db?schema=s"),
            ("postgres://u@h:5/?user=x&port=6&dbname=a", "postgres://h:5/?dbname=a&port=6"),
            ("postgres:///?host=/run/pg&dbname=a&pool_size=1", "postgres:///?dbname=a&host=/run/pg"),
            // The database has the user's name.
            ("postgres://u:hunter2@h", "postgres://h?user=u"),
            ("postgres://u@h?user=b&schema=s", "postgres://h?schema=s&user=b"),
            ("mongodb://h1,h2/db?replicaSet=rs0&maxpoolsize=3", "mongodb://h1,h2/db"),
            ("file:/a/b?deadline=1s", "file:/a/b"),
            ("file:///a/b", "file:/a/b"),
            ("git:/a/b?branch=x&author_name=me", "git:/a/b?branch=x"),
            ("memory:", "memory:"),
            // The end of such a password is unknown.
            ("postgres://u:hunt?er2@h/db", "postgres:"),
        ] {
            assert_eq!(identity_of(url), wanted);
        }
        assert!(identity_of("git:x").starts_with("git:/"));
        let secrets =
            "mongodb://h/db?authMechanismProperties=AWS_SESSION_TOKEN:x&tlsCertificateKeyFilePassword=y";
        assert_eq!(identity_of(secrets), "mongodb://h/db");
    }

    #[test]
    fn errors_name_the_server_without_secrets() {
        for (url, wanted) in [
            ("redis://user:p@ss@host:1/0?prefix=a:", Some("redis://host:1/0")),
            ("postgres://u:hunter2@h/db?password=x&schema=s", Some("postgres://h/db")),
            ("mongodb://h1,h2/db?replicaSet=rs0", Some("mongodb://h1,h2/db")),
            ("redis://user:pa?db=ss@host", None),
            ("file:/a/b", None),
            ("memory:", None),
        ] {
            assert_eq!(server_of(url).as_deref(), wanted);
        }
    }

    #[cfg(all(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
    #[test]
    fn two_urls_of_one_store() {
        for (one, other) in [
            ("redis://u:a@host/0", "redis://u:b@host:6379?prefix=gcli2api:"),
            ("postgres://u@h/db?schema=s", "postgres://v@h/db?pool_size=3&schema=s"),
            ("redis://localhost", "rediss://127.0.0.1:6379/0"),
            ("postgresql://u@localhost/db", "postgres://127.0.0.1:5432/db"),
            ("mongodb://[::1],localhost/db", "mongodb://[::1]:27017,127.0.0.1:27017/db"),
            ("postgres://u@h/db?schema=gateway_storage", "postgres://v@h?port=5432&dbname=db"),
            ("postgres://db@h", "postgres://h/db"),
            ("mongodb://h", "mongodb://h/gateway_storage"),
            ("redis+sentinel://s1/m1", "redis+sentinel://u@s1:26379/m1/0"),
            ("file:/tmp", "file:///tmp/."),
            ("file:/tmp/nothing", "git:/tmp/nothing"),
        ] {
            assert!(is_same(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("redis://host/0", "redis://host/1"),
            ("redis://host?prefix=a", "redis://host?prefix=b"),
            ("redis://host", "redis://host:6380"),
            ("redis+sentinel://s1:26379/m1", "redis+sentinel://s1:26379/m2"),
            ("redis+sentinel://s1:26379/m1/0", "redis://s1:26379/0"),
            ("postgres://u@h/a", "postgres://u@h/b"),
            ("postgres:///a", "postgres:///b"),
            ("mongodb://h/db", "mongodb://h:27018/db"),
            ("postgres://h", "mongodb://h"),
            ("file:/tmp/a", "file:/tmp"),
        ] {
            assert!(!is_same(one, other) && !is_within(one, other), "{one} {other}");
        }
        assert!(is_within("file:/tmp", "file:/tmp/a") && !is_same("file:/tmp", "file:/tmp/a"));
        assert!(is_within("redis://u@h", "redis://h:6379/0") && !is_within("redis://h", "redis://h/1"));
        // Its tables are in another schema.
        assert!(!is_within("postgres://h/db", "postgres://h/db"));
    }
}
