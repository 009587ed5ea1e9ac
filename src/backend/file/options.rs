//! [`FileOptions`]: the store's directory and how it is opened.

use std::{path::PathBuf, time::Duration};

use gateway_storage_macros::Setters;
use serde::{Deserialize, Serialize};

use crate::{
    DEFAULT_DEADLINE, Error, Result,
    codec::{Location, UrlOptions, check_path, from_paths, from_texts, invalid, readable, readable_size},
};

/// Options for opening a [`File`](crate::File) store.
///
/// As a URL: `file:./data`, `file:/var/lib/gateway?create=false&wait=30s`, `file:///var/lib/gateway`. The
/// path ends at the first `?` and is not decoded. `~` and `$HOME` are not expanded: a path that begins with
/// one is refused; `./~` is a directory of that name. A [`Path`](std::path::Path) is the store's directory,
/// as for [`new`](FileOptions::new). When deserialized, unknown fields are refused.
///
/// ```
/// # use std::time::Duration;
/// # use gateway_storage::FileOptions;
/// let options: FileOptions = serde_json::from_str(r#"{ "path": "./data", "deadline": "5s" }"#).unwrap();
/// assert_eq!(options.deadline, Duration::from_secs(5));
/// assert!(options.create);
/// assert_eq!(options, FileOptions::new("./data").with_deadline(Duration::from_secs(5)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, Setters)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileOptions {
    /// The store's directory.
    pub path: PathBuf,
    /// Whether a missing store is created (the default) or an error.
    #[serde(default = "yes")]
    pub create: bool,
    /// The deadline of each call. Default: [`DEFAULT_DEADLINE`]. Opening has no deadline.
    #[serde(default = "default_deadline", with = "readable")]
    pub deadline: Duration,
    /// How long opening waits while another process or another handle has the store open in a mode that keeps
    /// this one out. Default: zero, which is [`Busy`](crate::ErrorKind::Busy), at once with
    /// [`Sharing::Exclusive`] and after half a second with the others.
    ///
    /// Use it when a new process takes over from an old one, with the time that the old one needs to stop. If
    /// the store is not shared, set the strategy `Recreate` on Kubernetes: with `RollingUpdate` the old pod
    /// ends only once the new one is ready, so the wait would not end.
    #[serde(default, with = "readable")]
    pub wait: Duration,
    /// Whether the store is opened for reading only: on a read-only medium, or by a user without write
    /// permission. Changes nothing in the directory. Several processes can read a store at once; with
    /// [`Sharing::Exclusive`] none can write to it meanwhile. Default: `false`.
    ///
    /// Writes are [`Denied`](crate::ErrorKind::Denied), and [`health`](crate::Backend::health) checks reads.
    /// A store that was not closed cleanly, and that no other process has open, needs a repair first: copy
    /// its directory to a writable location, and open it there.
    #[serde(default)]
    pub read_only: bool,
    /// What other processes on this machine may do with the store while it is open here. All of them must
    /// use the same value. Default: [`Sharing::MultiWriter`].
    #[serde(default)]
    pub shared: Sharing,
    /// When opening reads the whole store to verify it. Default: [`Verify::Always`]. A store that is opened
    /// for reading only is not verified.
    #[serde(default)]
    pub verify: Verify,
    /// The memory for pages of the file, a quarter of it, and for parsed documents, in bytes. Default:
    /// 64 MiB. A document that takes more than a sixteenth of it is parsed at each read. As a text `64MiB`.
    #[serde(default = "default_cache", with = "readable_size")]
    pub cache: u64,
}

/// What other processes may do with a store that is open, in [`FileOptions`].
///
/// The modes are those of [redb](https://docs.rs/redb), which locks parts of the file. A file system without
/// such locks, as some network file systems are, allows [`Exclusive`](Self::Exclusive) only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Sharing {
    /// Nothing: opening the store elsewhere is [`Busy`](crate::ErrorKind::Busy). Several processes can read
    /// it together if none writes.
    Exclusive,
    /// Read: one process writes, and others can open the store
    /// [for reading](FileOptions::read_only).
    SingleWriter,
    /// Read and write.
    #[default]
    MultiWriter,
}

/// When opening a store verifies all of it, in [`FileOptions`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verify {
    /// At each opening, unless another process has the store open, which has verified it.
    #[default]
    Always,
    /// Only if it was not closed cleanly, as far as the engine needs it.
    Unclean,
}

fn yes() -> bool {
    true
}

fn default_cache() -> u64 {
    64 << 20
}

fn default_deadline() -> Duration {
    DEFAULT_DEADLINE
}

impl FileOptions {
    /// The defaults, for a store in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: yes(),
            deadline: default_deadline(),
            wait: Duration::ZERO,
            read_only: false,
            shared: Sharing::default(),
            verify: Verify::default(),
            cache: default_cache(),
        }
    }

    /// The part of the cache for the file's pages.
    ///
    /// Pages that it does not hold are mostly in the system's cache. It has to hold the upper pages of the
    /// tree.
    pub(super) fn page_cache(&self) -> u64 {
        self.cache / 4
    }

    /// The part of the cache for parsed documents.
    pub(super) fn document_cache(&self) -> u64 {
        self.cache - self.page_cache()
    }
}

/// The schemes of this backend's URLs.
pub(super) const SCHEMES: &[&str] = &["file"];

from_texts!(FileOptions);
from_paths!(FileOptions);

impl TryFrom<&str> for FileOptions {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self> {
        let location = Location::parse(url, SCHEMES)?;
        // A host follows `file://`: empty or `localhost`.
        let path = match location.rest.strip_prefix("//") {
            Some(after) => after.strip_prefix("localhost").unwrap_or(after),
            None => location.rest,
        };
        if path.is_empty() || (location.rest.starts_with("//") && !path.starts_with('/')) {
            return Err(invalid("a file URL is `file:PATH` or `file:///ABSOLUTE/PATH`"));
        }
        check_path(path.as_ref())?;
        let mut options = UrlOptions::of::<Self>(&["path"]);
        options.texts.insert("path".to_owned(), path.to_owned());
        location.options().try_for_each(|option| options.add(option?))?;
        options.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const SHELLS: &str = "the path begins with `~` or `$`, which no shell has replaced: write the whole path (on a command \
        line `$HOME/..`, without single quotes); a directory of such a name is `./~`";
    const WITHIN: &str = "the URL has a line feed or another control character within: percent-encode it in a part that may \
        have one";

    fn path_of(url: &str) -> PathBuf {
        FileOptions::try_from(url).unwrap().path
    }

    #[test]
    fn urls_are_parsed() {
        assert_eq!(path_of("file:./data"), PathBuf::from("./data"));
        assert_eq!(path_of("file:/var/lib/x%20y"), PathBuf::from("/var/lib/x%20y"));
        assert_eq!(path_of("file:./~"), PathBuf::from("./~"));
        assert_eq!(path_of("file:///~/x"), PathBuf::from("/~/x"));
        assert_eq!(path_of("\tfile:./data \r\n"), PathBuf::from("./data"));
        assert_eq!(path_of("file:///var/lib"), PathBuf::from("/var/lib"));
        assert_eq!(path_of("file://localhost/var/lib"), PathBuf::from("/var/lib"));
        let options = FileOptions::try_from("file:data?create=false&deadline=250ms&wait=5s").unwrap();
        assert_eq!((options.create, options.deadline), (false, Duration::from_millis(250)));
        assert_eq!((options.wait, options.read_only), (Duration::from_secs(5), false));
        assert!(FileOptions::try_from("file:data?read_only=true").unwrap().read_only);
    }

    #[test]
    fn invalid_urls_are_refused() {
        for (url, message) in [
            ("redis://x", "the URL of this backend begins with `file:`"),
            ("file:", "a file URL is `file:PATH` or `file:///ABSOLUTE/PATH`"),
            ("file://host/x", "a file URL is `file:PATH` or `file:///ABSOLUTE/PATH`"),
            ("file:x?create=maybe", "the URL option `create` must be `true` or `false`"),
            ("file:x?deadline=5", "the URL option `deadline` must be a duration such as `10s` or `250ms`"),
            (
                "file:x?mode=1",
                "the URL has an option that this backend does not know; its options: cache, create, deadline, \
                 read_only, shared, verify, wait",
            ),
            ("file:~/data", SHELLS),
            ("file:~", SHELLS),
            ("file:$HOME/data?create=false", SHELLS),
            ("file:a\nb", WITHIN),
            ("file:x?create=true\u{9f}&deadline=1s", WITHIN),
            ("file:x?create", "an option of a URL is written `name=value`"),
        ] {
            let error = FileOptions::try_from(url).unwrap_err();
            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (ErrorKind::InvalidValue, message),
                "{url}"
            );
        }
    }

    #[test]
    fn options_are_serialized() {
        let options = FileOptions::new("./data");
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(
            text,
            r#"{"path":"./data","create":true,"deadline":"10s","wait":"0s","read_only":false,"shared":"multi-writer","verify":"always","cache":"64MiB"}"#
        );
        assert_eq!(serde_json::from_str::<FileOptions>(&text).unwrap(), options);
        assert!(serde_json::from_str::<FileOptions>(r#"{"path":".","pth":1}"#).is_err());
    }
}
