//! [`Adoption`]: reads the legacy data of gcli2api-go as records.

use std::{
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, future, stream};

use super::layout::{Layout, NAME_LAYOUT, NOT_RECOGNIZED, names};
#[cfg(feature = "file")]
use super::{document, folder};
#[cfg(feature = "mongodb")]
use crate::MongoDb;
#[cfg(feature = "postgres")]
use crate::Postgres;
use crate::{Backend, Error, ErrorKind, Record, Result, adopt::Remark, model::Piece};
#[cfg(feature = "redis")]
use crate::{Open, Redis, RedisOptions};

/// Legacy data of gcli2api-go. Finds its [layout](Layout) and reads it as a sorted stream of records. Never
/// writes to it.
///
/// ```
/// # use futures_util::TryStreamExt;
/// # use gateway_storage::{adopt::{Adoption, Layout}, Memory, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # std::fs::create_dir(dir.path().join("credentials")).unwrap();
/// # std::fs::write(dir.path().join("credentials/alice.json"), r#"{"access_token":"ya29.xxx"}"#).unwrap();
/// # std::fs::write(dir.path().join("credentials/bob.json"), "{").unwrap();
/// # let url = format!("file:{}", dir.path().display());
/// # let url = url.as_str();
/// let adoption = Adoption::open(url, None).await?; // "file:/var/lib/gcli2api/data"
/// assert_eq!(adoption.layout(), Layout::Directory);
///
/// let storage = Storage::<Memory>::open("memory:").await?;
/// storage.import(adoption.records()).await?;
/// assert_eq!(storage.list_credentials().await?.len(), 1);
/// for remark in adoption.remarks() {
///     println!("{}: {}: {}", remark.kind.as_str(), remark.place, remark.reason);
/// }
/// adoption.close().await
/// # }
/// ```
///
/// # Layouts
///
/// | layout | URL | read from |
/// |---|---|---|
/// | [`Directory`](Layout::Directory) | `file:DIR` | `credentials/<id>.json`, `config/config.json`, `usage/<key>.json` |
/// | [`WorkTree`](Layout::WorkTree) | `file:DIR` | a Git work tree: `credentials/<id>.json`, `config/<key>.json` |
/// | [`Folder`](Layout::Folder) | `file:DIR` | `<id>.json`, each a JSON object with a field of an OAuth credential |
/// | [`Document`](Layout::Document) | `file:FILE` | an exported document, `{"credentials": .., "configs": .., "usage": ..}` |
/// | [`Keys`](Layout::Keys) | `redis://..?prefix=gcli2api:` and its variants | `<prefix>cred:<id>`, `<prefix>config`, `<prefix>usage:<key>` |
/// | [`Collections`](Layout::Collections) | `mongodb://HOST/DATABASE` | `credentials` (by `id`), `configs`, `usage_stats` (by `key`) |
/// | [`Tables`](Layout::Tables) | `postgres://..?schema=public` | `credentials(filename, data)`, `configs(config_key, value)`, `usage_stats(usage_key, field, value)` |
///
/// Data that may have more than one layout is an error that names them, unless the caller names the layout.
/// The options of a URL are those of the backend; `schema` defaults to `public`.
///
/// # What is adopted
///
/// The stored data is adopted field for field: names in `snake_case` and in `CamelCase` are kept. Where
/// gcli2api-go returned other data than it stored, the stored data counts:
///
/// - **MongoDB**: the fields that gcli2api-go added are left out: `_id`, `id` and `updated_at` of a
///   credential, and `_id`, `key` and `updated_at` of other records. It stored most numbers as floats; whole
///   numbers are adopted as integers (`5.0` as `5`), as in its own JSON, and times as text. A usage field
///   `a.b` was stored as a document and is adopted as one counter. If concurrent writes created several
///   documents of one key, counters are added up, and the value that was changed last is adopted.
/// - **PostgreSQL**: gcli2api-go ignored unknown fields when it read a credential; they are adopted. Fields
///   that it dropped when it wrote one are lost: such a credential (no token, `0001-01-01T00:00:00Z`) has a
///   remark.
/// - **Redis**: gcli2api-go returned counters as text; they are adopted as numbers. A config value that is
///   not JSON is a string.
/// - **Exported document**: the rules are those of the backend that it came from. `id` and `updated_at` of
///   MongoDB's credentials are left out, and Redis's counters are adopted as numbers.
/// - **Git**: gcli2api-go stored strings without quotes, so the string `123` looks like the number and is
///   adopted as the number. It never stored usage.
///
/// # What is not adopted
///
/// Each entry that is not adopted has a [`Remark`], and so has each that was adopted with a change. Cache
/// values, records of config plans, credential states, and columns and fields with modification times have no
/// counterpart in a store. An entry that can't be read (not JSON, nested too deep, too large, a name that is
/// not a [`Key`](crate::Key), a counter that is not a 64-bit integer, a symbolic link that leads out of the
/// directory) is skipped and does not stop the others. Links within the directory are followed, because a
/// mounted Kubernetes secret is a directory of links. A byte order mark at the beginning of a file is
/// skipped.
///
/// # Limits
///
/// A stream of records holds in memory the names of all files or Redis keys, a page of values, and all
/// remarks. A file may have 16 MiB, `config/config.json` 64 MiB, and an exported document, which is read as a
/// whole, [`MAX_GO_BYTES`](crate::archive::MAX_GO_BYTES). Redis, a directory and a
/// standalone MongoDB server give no snapshot: the stream may or may not return concurrent changes, so stop
/// gcli2api-go first.
pub struct Adoption {
    layout: Layout,
    source: Source,
    remarks: Arc<Mutex<Vec<Remark>>>,
}

enum Source {
    /// A directory, or a file.
    #[cfg(feature = "file")]
    Path(PathBuf),
    #[cfg(feature = "mongodb")]
    MongoDb(MongoDb),
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
    #[cfg(feature = "redis")]
    Redis(Redis),
}

impl fmt::Debug for Adoption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adoption").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// The URL schemes of this build from which legacy data can be adopted.
const SCHEMES: &[&str] = &[
    #[cfg(feature = "file")]
    "`file:`",
    #[cfg(feature = "mongodb")]
    "`mongodb:`",
    #[cfg(feature = "postgres")]
    "`postgres:`",
    #[cfg(feature = "redis")]
    "`redis:`",
];

type Pieces = Pin<Box<dyn Stream<Item = Result<Piece>> + Send>>;

impl Adoption {
    /// Opens the legacy data at a URL, and detects its layout unless it is given.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if no layout is recognized.
    /// [`InvalidValue`](ErrorKind::InvalidValue) if several are possible, if the given layout does not fit
    /// the URL, or if the URL names a store of this crate. Errors of the server.
    pub async fn open(url: &str, layout: Option<Layout>) -> Result<Self> {
        let (source, found) = Source::open(url, layout).await?;
        let (layout, source) = match (layout, found.as_slice()) {
            (Some(layout), _) => (layout, source),
            (None, [layout]) => (*layout, source),
            (None, []) => {
                return Err(Error::new(ErrorKind::NotFound, format!("{NOT_RECOGNIZED}; {NAME_LAYOUT}")));
            }
            (None, several) => {
                let message = format!(
                    "the data may have more than one layout: {}; name one (`--layout` on a command line)",
                    names(several)
                );
                return Err(Error::new(ErrorKind::InvalidValue, message));
            }
        };
        Ok(Self { layout, source, remarks: Arc::default() })
    }

    /// The layout.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Every record, in the order of [`export`](crate::Exportable::export). Each stream reads everything
    /// again. It ends after the first error; a defect of a single record is a remark and not an error.
    pub fn records(&self) -> impl Stream<Item = Result<Record>> + Send + use<> {
        let remarks = self.remarks.clone();
        remarks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.source.pieces(self.layout).try_filter_map(move |piece| {
            future::ready(Ok(match piece {
                Piece::Record(record) => Some(record),
                Piece::Remark(remark) => {
                    remarks.lock().unwrap_or_else(PoisonError::into_inner).push(remark);
                    None
                }
            }))
        })
    }

    /// The remarks of the last stream of records so far; complete once the stream has ended.
    #[must_use]
    pub fn remarks(&self) -> Vec<Remark> {
        self.remarks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Disconnects.
    ///
    /// # Errors
    ///
    /// As [`Backend::close`].
    pub async fn close(self) -> Result<()> {
        match &self.source {
            #[cfg(feature = "file")]
            Source::Path(_) => Ok(()),
            #[cfg(feature = "mongodb")]
            Source::MongoDb(mongodb) => mongodb.close().await,
            #[cfg(feature = "postgres")]
            Source::Postgres(postgres) => postgres.close().await,
            #[cfg(feature = "redis")]
            Source::Redis(redis) => redis.close().await,
        }
    }
}

impl Source {
    /// Opens the source and returns its possible layouts.
    async fn open(url: &str, layout: Option<Layout>) -> Result<(Self, Vec<Layout>)> {
        let url = url.trim();
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            #[cfg(feature = "file")]
            "file" => {
                let path = crate::FileOptions::try_from(url)?.path;
                let found = path_layouts(path.clone(), layout).await?;
                Ok((Self::Path(path), found))
            }
            #[cfg(feature = "mongodb")]
            "mongodb" | "mongodb+srv" => {
                let found = only(Layout::Collections, layout)?;
                Ok((Self::MongoDb(MongoDb::open_legacy(url).await?), found))
            }
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => {
                let found = only(Layout::Tables, layout)?;
                Ok((Self::Postgres(Postgres::open_legacy(url).await?), found))
            }
            #[cfg(feature = "redis")]
            _ if scheme.starts_with("redis") => {
                let found = only(Layout::Keys, layout)?;
                Ok((Self::Redis(Redis::open(RedisOptions::try_from(url)?).await?), found))
            }
            _ => {
                let message =
                    format!("this build adopts only from URLs that begin with {}", SCHEMES.join(", "));
                Err(Error::new(ErrorKind::InvalidValue, message))
            }
        }
    }

    // Only a path can have several layouts.
    #[cfg_attr(not(feature = "file"), allow(unused_variables))]
    fn pieces(&self, layout: Layout) -> Pieces {
        match self {
            #[cfg(feature = "file")]
            Self::Path(path) if layout == Layout::Document => Box::pin(document_pieces(path.clone())),
            #[cfg(feature = "file")]
            Self::Path(path) => Box::pin(directory_pieces(path.clone(), layout)),
            #[cfg(feature = "mongodb")]
            Self::MongoDb(mongodb) => Box::pin(mongodb.legacy()),
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => Box::pin(postgres.legacy()),
            #[cfg(feature = "redis")]
            Self::Redis(redis) => Box::pin(redis.legacy()),
        }
    }
}

/// The layout of a URL that can have only one.
fn only(layout: Layout, wanted: Option<Layout>) -> Result<Vec<Layout>> {
    match wanted {
        Some(wanted) if wanted != layout => {
            Err(Error::new(ErrorKind::InvalidValue, format!("the layout of such a URL is `{layout}`")))
        }
        _ => Ok(vec![layout]),
    }
}

#[cfg(feature = "file")]
async fn path_layouts(path: PathBuf, layout: Option<Layout>) -> Result<Vec<Layout>> {
    const THESE: [Layout; 4] = [Layout::Directory, Layout::Folder, Layout::WorkTree, Layout::Document];
    match layout {
        None => {
            off_thread(move || match path.is_file() {
                true => document::recognize(&path),
                false => folder::recognize(&path),
            })
            .await?
        }
        Some(layout) if THESE.contains(&layout) => Ok(vec![layout]),
        Some(_) => Err(Error::new(
            ErrorKind::InvalidValue,
            format!("the layout of such a URL is one of {}", names(&THESE)),
        )),
    }
}

#[cfg(feature = "file")]
fn document_pieces(path: PathBuf) -> impl Stream<Item = Result<Piece>> + Send + 'static {
    stream::once(async move { off_thread(move || document::read(&path)).await? })
        .map_ok(|pieces| stream::iter(pieces).map(Ok))
        .try_flatten()
}

/// Files read per page.
#[cfg(feature = "file")]
const PAGE: usize = 64;

#[cfg(feature = "file")]
fn directory_pieces(path: PathBuf, layout: Layout) -> impl Stream<Item = Result<Piece>> + Send + 'static {
    stream::once(async move { off_thread(move || folder::plan(&path, layout)).await? })
        .map_ok(|(steps, remarks)| {
            let files = stream::try_unfold(steps.into_iter(), |mut steps| async move {
                off_thread(move || {
                    let page: Vec<Piece> = steps
                        .by_ref()
                        .take(PAGE)
                        .collect::<Vec<_>>()
                        .iter()
                        .flat_map(folder::Step::read)
                        .collect();
                    (steps.len() > 0 || !page.is_empty()).then_some((page, steps))
                })
                .await
            });
            let pages = stream::iter([Ok(remarks)]).chain(files);
            pages.map_ok(|page| stream::iter(page).map(Ok)).try_flatten()
        })
        .try_flatten()
}

/// Runs work that may block on a slow file system.
#[cfg(feature = "file")]
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::new(ErrorKind::Internal, "a task that reads files panicked"))
}
