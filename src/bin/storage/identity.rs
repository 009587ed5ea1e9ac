//! The identity of a store: whether two URLs name the same one.

use std::path::{Path, PathBuf, absolute};

#[cfg(feature = "file")]
use gateway_storage::FileOptions;
#[cfg(feature = "git")]
use gateway_storage::GitOptions;
#[cfg(feature = "mongodb")]
use gateway_storage::MongoDbOptions;
#[cfg(feature = "postgres")]
use gateway_storage::PostgresOptions;
#[cfg(feature = "redis")]
use gateway_storage::RedisOptions;

/// Identifies the store of a valid URL: equal for two URLs of one store, and without passwords.
pub(crate) fn identity_of(url: &str) -> String {
    #[cfg(feature = "git")]
    if let (Some(directory), Ok(git)) = (directory_of(url), GitOptions::try_from(url)) {
        return format!("git:{}?branch={}", directory.display(), git.branch);
    }
    match directory_of(url) {
        Some(directory) => format!("file:{}", directory.display()),
        None => server(url).unwrap_or_else(|| "memory:".to_owned()),
    }
}

/// Identifies legacy data. In PostgreSQL its tables are in the schema `public` unless the URL names another.
pub(crate) fn legacy_identity_of(url: &str) -> String {
    match url.split_once('?') {
        _ if !url.starts_with("postgres") => identity_of(url),
        // The last of several options counts.
        Some((location, options)) => identity_of(&format!("{location}?schema=public&{options}")),
        None => identity_of(&format!("{url}?schema=public")),
    }
}

/// The scheme, host and path of a server's URL, for errors. Errors of a store in a directory name it
/// themselves.
pub(crate) fn server_of(url: &str) -> Option<String> {
    let (location, options) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) =
        location.split_once("://").filter(|(scheme, _)| !["file", "git"].contains(scheme))?;
    let server = match scheme {
        "redis+unix" => rest,
        _ => rest.rsplit_once('@').map_or(rest, |(_, server)| server),
    };
    let (hosts, _) = server.split_once('/').unwrap_or((server, ""));
    // With a `?` in the password, the login ends within the options.
    (hosts.split(',').all(is_host) && !options.contains('@')).then(|| format!("{scheme}://{server}"))
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
    let servers = server(one).zip(server(other));
    let directories = directory_of(one).zip(directory_of(other));
    servers.is_some_and(|(one, other)| one == other) || directories.is_some_and(|(one, other)| one == other)
}

/// Whether the target is within the legacy data of the source: a subdirectory, or keys of the same Redis
/// database. In PostgreSQL and MongoDB the legacy data has tables or collections of its own.
pub(crate) fn is_within(source: &str, target: &str) -> bool {
    let directories = directory_of(source).zip(directory_of(target));
    (source.starts_with("redis") && server(source) == server(target))
        || directories.is_some_and(|(source, target)| target.starts_with(source))
}

/// Identifies a store on a server.
fn server(url: &str) -> Option<String> {
    let identities: &[Option<String>] = &[
        #[cfg(feature = "redis")]
        RedisOptions::try_from(url).ok().map(|options| options.identity()),
        #[cfg(feature = "postgres")]
        PostgresOptions::try_from(url).ok().map(|options| options.identity()),
        #[cfg(feature = "mongodb")]
        MongoDbOptions::try_from(url).ok().map(|options| options.identity()),
    ];
    identities.iter().flatten().next().cloned()
}

/// The directory of a store on disk, with links resolved.
fn directory_of(url: &str) -> Option<PathBuf> {
    let paths: &[Option<PathBuf>] = &[
        #[cfg(feature = "file")]
        FileOptions::try_from(url).ok().map(|options| options.path),
        #[cfg(feature = "git")]
        GitOptions::try_from(url).ok().map(|options| options.path),
    ];
    absolute_path(paths.iter().flatten().next()?)
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
            ("redis+unix:///run/a@b/redis.sock?db=1", "redis:///run/a@b/redis.sock/1?prefix=gcli2api:"),
            ("redis+sentinel://u:p@s1,s2:1/m", "redis://s1:26379,s2:1/m/0?prefix=gcli2api:"),
            ("postgres://u:hunter2@h/db?schema=s&statement_timeout=1s", "postgres://h:5432/db?schema=s"),
            ("postgres://u@h:5/?user=x&dbname=a", "postgres://h:5/a?schema=gateway_storage"),
            ("postgres:///?host=/run/pg&dbname=a&pool_size=1", "postgres:///run/pg/a?schema=gateway_storage"),
            // The database has the user's name.
            ("postgres://u:hunter2@h", "postgres://h:5432/u?schema=gateway_storage"),
            ("mongodb://h1,[::1]:1/db?replicaSet=rs0&maxpoolsize=3", "mongodb://h1:27017,[::1]:1/db"),
            ("file:/a/b?deadline=1s", "file:/a/b"),
            ("file:///a/b", "file:/a/b"),
            ("git:/a/b?branch=x&author_name=me", "git:/a/b?branch=x"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(identity_of(url), wanted);
        }
        assert!(identity_of("git:x").starts_with("git:/"));
        let legacy = ["postgres://h/db", "postgres://h/db?schema=s"].map(legacy_identity_of);
        assert_eq!(legacy, ["postgres://h:5432/db?schema=public", "postgres://h:5432/db?schema=s"]);
    }

    #[test]
    fn errors_name_the_server_without_secrets() {
        for (url, wanted) in [
            ("redis://user:p@ss@host:1/0?prefix=a:", Some("redis://host:1/0")),
            ("postgres://u:hunter2@h/db?password=x&schema=s", Some("postgres://h/db")),
            ("mongodb://h1,h2/db?replicaSet=rs0", Some("mongodb://h1,h2/db")),
            ("redis://user:pa?db=ss@host", None),
            // The end of such a password is unknown.
            ("postgres://u:hunt?er2@h/db", None),
            ("redis+unix:///run/a@b/redis.sock?db=1", Some("redis+unix:///run/a@b/redis.sock")),
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
