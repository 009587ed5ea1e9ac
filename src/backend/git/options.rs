//! [`GitOptions`]: the repository and how it is shared.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::error::refused;
use crate::{
    DEFAULT_DEADLINE, Error, Result, Secret,
    codec::{Location, UrlOptions, check_path, decode, from_paths, from_texts, options, readable},
};

/// When commits are fetched from the remote or sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GitSync {
    /// With every write: fetched before it, or sent before it is acknowledged.
    Write,
    /// Every [`interval`](GitOptions::interval), in the background.
    Interval,
    /// Only by [`Git::pull`](crate::Git::pull) and [`Git::push`](crate::Git::push).
    Manual,
}

options! {
    /// Options for opening a [`Git`](crate::Git) store.
    ///
    /// As a URL: `git:./settings?remote=https://git.example/team/settings.git&token_env=GIT_TOKEN`. The path
    /// ends at the first `?` and is not decoded; the values of options may be percent-encoded. The fields
    /// below are options under their names, except `token`, which is `token_env=NAME` or `token_file=PATH`,
    /// because other users may see a URL. A [`Path`](std::path::Path) is the directory of the work tree, as
    /// for [`new`](GitOptions::new). When deserialized, unknown fields are refused.
    ///
    /// ```
    /// # use gateway_storage::{git::GitSync, GitOptions};
    /// let options = GitOptions::try_from("git:./settings?remote=/srv/settings.git&pull=write")?;
    /// assert_eq!((options.pull, options.push), (GitSync::Write, GitSync::Write));
    /// assert_eq!(options.branch, "main");
    /// # Ok::<(), gateway_storage::Error>(())
    /// ```
    #[derive(Clone, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[non_exhaustive]
    pub struct GitOptions {
        /// The directory of the work tree.
        pub path: PathBuf = PathBuf::new(),
        /// The branch with the data. `HEAD` must be at it. Default: `main`.
        pub branch: String = "main".to_owned(),
        /// The repository through which this one is shared: a path or a URL (`file://`; `https://` needs the
        /// feature `git-https`, `ssh://` and `user@host:path` need `git-ssh`). A URL that can contain a
        /// password or token is refused: a user for `http` and `https`, a second `@`, a query. None: not
        /// shared.
        ///
        /// With a path or `file://`, this process writes the commits itself: **no hook of that repository
        /// runs, and its `receive` settings do not apply.** If they protect the branch, use `ssh://`,
        /// `https://` or `git://`.
        ///
        /// A remote may need:
        ///
        /// - A proxy, for `https` only: `http.proxy` in the repository's `.git/config`, or the variables
        ///   `https_proxy` and `no_proxy`.
        /// - A certificate authority, for `https`: those that OpenSSL trusts on this machine, or the file in
        ///   `SSL_CERT_FILE`.
        /// - The host key, for `ssh`: in `~/.ssh/known_hosts` of this process's user (`ssh-keyscan`).
        ///   `~/.ssh/config` is not read.
        /// - Signed commits are not supported. If the branch requires them, push to another branch and merge
        ///   it.
        pub remote: Option<String> = None,
        /// The author of commits. Default: `gateway-storage`.
        pub author_name: String = "gateway-storage".to_owned(),
        /// The author's address. Default: `gateway-storage@localhost`.
        pub author_email: String = "gateway-storage@localhost".to_owned(),
        /// When the commits of others are fetched. Default: [`GitSync::Interval`]; opening fetches unless it
        /// is `Manual`.
        pub pull: GitSync = GitSync::Interval,
        /// When our commits are sent. Default: [`GitSync::Write`]. Unless it is `Manual`, closing sends
        /// unsent commits; dropping the last handle does not, because it could block other tasks.
        ///
        /// `Ok` never means that the remote has a write, only that it is committed here. `Write` tries to
        /// send it first, and refuses it if others have changed the same record. If the remote does not
        /// answer or rejects the commit (a protected branch, a hook), the commit is kept and sent later
        /// together with those after it. A remote that rejects commits is tried once per
        /// [`interval`](Self::interval). Its message is `remote_said` in the [`stats`](crate::Backend::stats)
        /// and nowhere else, because it may quote the data. If a write must reach the remote, call
        /// [`Git::push`](crate::Git::push) after it.
        pub push: GitSync = GitSync::Write,
        /// The interval of [`GitSync::Interval`], and the delay before unsent commits are tried again.
        /// Default: 60 s.
        #[serde(with = "readable")]
        pub interval: Duration = Duration::from_secs(60),
        /// The time that the remote may take to answer before it counts as offline. Default: 5 s. A fetch
        /// must finish within it, so the first clone of a large repository needs more. A connection that is
        /// silent for longer is abandoned, and the next request opens a new one. With more than eight that
        /// still hang, this waits up to 128 times as long.
        #[serde(with = "readable")]
        pub remote_timeout: Duration = Duration::from_secs(5),
        /// The user name for the remote. Default: the URL's, or `git`.
        pub username: Option<String> = None,
        /// The token or password: read for each connection, and sent over TLS only. In a URL, `token_env` or
        /// `token_file` names its source.
        pub token: Option<Secret> = None,
        /// The file of a private key without a passphrase, for `ssh`. None: a key of the agent, which may
        /// have a passphrase.
        pub ssh_key: Option<PathBuf> = None,
        /// Whether a missing repository is created (the default) or an error.
        pub create: bool = true,
        /// The deadline of each call. Default: [`DEFAULT_DEADLINE`]. Opening has no deadline.
        #[serde(with = "readable")]
        pub deadline: Duration = DEFAULT_DEADLINE,
    }
}

impl GitOptions {
    /// The defaults, for a repository in this directory that is not shared.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Refuses invalid options before anything is opened.
    pub(super) fn check(&self) -> Result<()> {
        if self.path.as_os_str().is_empty() {
            return Err(refused("a Git URL is `git:PATH`"));
        }
        let local = self.remote.as_deref().and_then(local_path);
        for path in [Some(&self.path), local.as_ref(), self.ssh_key.as_ref()].into_iter().flatten() {
            check_path(path)?;
        }
        if !git2::Reference::is_valid_name(&self.reference()) {
            return Err(refused("the branch is not a name that Git allows"));
        }
        for text in [&self.author_name, &self.author_email] {
            if text.trim().is_empty() || text.contains(|each: char| "<>".contains(each) || each.is_control())
            {
                return Err(refused(
                    "the author's name and address must not be empty or contain `<`, `>` or control characters",
                ));
            }
        }
        if let Some(remote) = &self.remote {
            check_remote(remote)?;
        }
        if self.interval.is_zero() || self.remote_timeout.is_zero() {
            return Err(refused("the interval and the remote's timeout must be more than zero"));
        }
        Ok(())
    }

    /// The branch's full name.
    pub(super) fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    /// The reference of the remote's branch.
    pub(super) fn tracking(&self) -> String {
        format!("refs/remotes/gateway-storage/{}", self.branch)
    }
}

/// Whether the remote is a directory of this machine.
pub(super) fn local_path(remote: &str) -> Option<PathBuf> {
    match remote.strip_prefix("file://") {
        Some(path) => Some(PathBuf::from(decode(path).ok()?)),
        // As in Git: a colon before any slash follows a host name.
        None if remote.split('/').next().is_some_and(|first| first.contains(':')) => None,
        None => Some(PathBuf::from(remote)),
    }
}

/// Refuses a remote with a password in it, and one that this build does not support. The error does not quote
/// it.
fn check_remote(remote: &str) -> Result<()> {
    let (scheme, rest) = remote.split_once("://").unwrap_or(("", remote));
    let is_url = !scheme.is_empty();
    if is_url && rest.contains(['?', '#']) {
        return Err(refused(
            "the remote's URL has a query or a fragment: Git URLs need none, and it can contain a token",
        ));
    }
    // Text before the last `@` may be a password, even with characters that should have been encoded.
    if let Some((user, rest)) = rest.split_once('@').filter(|_| is_url || local_path(remote).is_none()) {
        if ["http", "https"].contains(&scheme) {
            return Err(refused(
                "the remote's URL names a user or a password: use `username`, and `token_env` or `token_file` (or `GitOptions::token`)",
            ));
        }
        let is_name = |each: char| each.is_ascii_alphanumeric() || "-_.".contains(each);
        if user.is_empty() || !user.chars().all(is_name) || rest.contains('@') {
            return Err(refused(
                "the remote's URL may contain a password: use a key, and write an `@` in its path as `%40`",
            ));
        }
    }
    let is_known = match scheme {
        "" if local_path(remote).is_none() => cfg!(feature = "git-ssh"),
        "" | "file" | "http" | "git" => true,
        "https" => cfg!(feature = "git-https"),
        "ssh" => cfg!(feature = "git-ssh"),
        _ => false,
    };
    if is_known && !remote.is_empty() && !remote.contains(char::is_control) {
        Ok(())
    } else {
        Err(refused(
            "this build does not support such a remote: `https` needs the feature `git-https`, `ssh` the feature `git-ssh`",
        ))
    }
}

/// The schemes of this backend's URLs.
pub(super) const SCHEMES: &[&str] = &["git"];

from_texts!(GitOptions);
from_paths!(GitOptions);

impl TryFrom<&str> for GitOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, SCHEMES)?;
        let mut options = UrlOptions::of::<Self>(&["path", "token"]);
        options.texts.insert("path".to_owned(), location.rest.to_owned());
        location.options().try_for_each(|option| options.add(option?))?;
        let options: Self = options.read()?;
        options.check()?;
        Ok(options)
    }
}

impl fmt::Debug for GitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An unchecked remote can contain a password.
        let remote = self.remote.as_deref().map(|remote| check_remote(remote).map_or("...", |()| remote));
        f.debug_struct("GitOptions")
            .field("path", &self.path)
            .field("branch", &self.branch)
            .field("remote", &remote)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let options = GitOptions::try_from(
            "git:./settings?branch=team/live&remote=%2Fsrv%2Fa%20b.git&push=interval&interval=5s&author_name=A%20B",
        )
        .unwrap();
        assert_eq!((options.branch.as_str(), options.remote.as_deref()), ("team/live", Some("/srv/a b.git")));
        assert_eq!((options.push, options.pull), (GitSync::Interval, GitSync::Interval));
        assert_eq!((options.interval, options.author_name.as_str()), (Duration::from_secs(5), "A B"));
    }

    #[test]
    fn invalid_urls_are_refused_without_quoting_them() {
        for (url, message) in [
            ("file:x", "the URL of this backend begins with `git:`"),
            ("git:", "a Git URL is `git:PATH`"),
            ("git:x?branch=a..b", "the branch is not a name that Git allows"),
            ("git:~/x", "the path begins with `~` or `$`"),
            ("git:x?remote=~/x.git", "the path begins with `~` or `$`"),
            ("git:x?ssh_key=$HOME/.ssh/id", "the path begins with `~` or `$`"),
            ("git:x\n?push=write", "the URL has a line feed or another control character"),
            ("git:x?push=often", "the URL option `push` must be one of write, interval, manual"),
            (
                "git:x?token=secret",
                "the URL has an option that this backend does not know; its options: author_email,",
            ),
            ("git:x?author_name=<", "the author's name and address must not be empty"),
            ("git:x?remote=https://ghp_secret@host/x", "the remote's URL names a user or a password:"),
            ("git:x?remote=https://a:secret@host/x", "the remote's URL names a user or a password:"),
            ("git:x?remote=http://a:pa/secret@host/x", "the remote's URL names a user or a password:"),
            (
                "git:x?remote=http://host/x%3Fprivate_token=secret",
                "the remote's URL has a query or a fragment:",
            ),
            ("git:x?remote=http://host/x%23secret", "the remote's URL has a query or a fragment:"),
            ("git:x?remote=ssh://a:secret@host/x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=ssh://a:pa/secret@host/x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=ssh://a%253Asecret@host/x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=git://a:secret@host/x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=file://a:secret@host/x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=a:secret@host:x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=a:pa/secret@host:x", "the remote's URL may contain a password: use a key"),
            ("git:x?remote=ftp://host/x", "this build does not support such a remote:"),
            ("git:x?interval=0s", "the interval and the remote's timeout must be more than zero"),
        ] {
            let error = GitOptions::try_from(url).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidValue, "{url}");
            assert!(error.to_string().starts_with(message), "{url}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn tokens_have_a_source() {
        let token = |url| GitOptions::try_from(url).map(|options| options.token);
        assert_eq!(token("git:x?token_env=A%20B").unwrap(), Some(Secret::env("A B")));
        assert_eq!(token("git:x?token_file=/run/t").unwrap(), Some(Secret::file("/run/t")));
        let error = token("git:x?token_file=/run/t&token_env=A").unwrap_err();
        assert!(error.to_string().starts_with("the URL has two passwords:"), "{error}");
        let typed = |text| serde_json::from_str::<GitOptions>(text).map(|options| options.token);
        assert_eq!(typed(r#"{"path":"x","token":{"file":"/run/t"}}"#).unwrap(), Some(Secret::file("/run/t")));
        assert_eq!(typed(r#"{"path":"x","token":"ghp_x"}"#).unwrap(), Some(Secret::from("ghp_x")));
    }

    #[test]
    fn local_remotes_are_recognized() {
        for (remote, path) in [
            ("/srv/x.git", Some("/srv/x.git")),
            ("./a:b", Some("./a:b")),
            ("file:///srv/x%20y", Some("/srv/x y")),
            ("git@host:x.git", None),
            ("https://host/x", None),
        ] {
            assert_eq!(local_path(remote), path.map(PathBuf::from), "{remote}");
        }
    }

    #[test]
    fn debug_prints_no_secret() {
        let mut options = GitOptions::new("x");
        options.token = Some("hunter2-secret".into());
        for remote in ["https://a:secret@host/x", "http://a:pa/secret@host/x", "http://host/x?token=secret"] {
            options.remote = Some(remote.into());
            assert!(!format!("{options:?}").contains("secret"));
        }
    }

    #[test]
    fn options_are_deserialized() {
        let options: GitOptions =
            serde_json::from_str(r#"{ "path": "x", "pull": "manual", "interval": "1m" }"#).unwrap();
        assert_eq!((options.pull, options.interval), (GitSync::Manual, Duration::from_secs(60)));
        assert!(serde_json::from_str::<GitOptions>(r#"{"path":".","pth":1}"#).is_err());
    }
}
