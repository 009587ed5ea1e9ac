//! [`Adoption`]: what the Go program left, as records.

#[cfg(feature = "file")]
mod directory;
#[cfg(feature = "file")]
mod document;
#[cfg(feature = "file")]
mod folder;

use std::{
    fmt,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use serde::{Serialize, Serializer};

#[cfg(feature = "mongodb")]
use crate::MongoDb;
#[cfg(feature = "postgres")]
use crate::Postgres;
use crate::{Backend, Error, ErrorKind, Record, Remark, Result, model::Piece};
#[cfg(feature = "redis")]
use crate::{Open, Redis, RedisConfig};

/// What the Go program left somewhere: found, told apart, and read as a sorted stream of records. Nothing is ever written there.
///
/// ```
/// # use futures_util::TryStreamExt;
/// # use gateway_storage::{Adoption, Layout, Memory, Storage};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # std::fs::create_dir(folder.path().join("credentials")).unwrap();
/// # std::fs::write(folder.path().join("credentials/alice.json"), r#"{"access_token":"ya29.xxx"}"#).unwrap();
/// # std::fs::write(folder.path().join("credentials/bob.json"), "{").unwrap();
/// # let url = format!("file:{}", folder.path().display());
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
/// | [`WorkTree`](Layout::WorkTree) | `file:DIR` | a clone's work tree: `credentials/<id>.json`, `config/<key>.json` |
/// | [`Folder`](Layout::Folder) | `file:DIR` | `<id>.json`, each a JSON object with a field of an OAuth credential |
/// | [`Document`](Layout::Document) | `file:FILE` | the document that it exported, `{"credentials": .., "configs": .., "usage": ..}` |
/// | [`Keys`](Layout::Keys) | `redis://..?prefix=gcli2api:` and its kin | `<prefix>cred:<id>`, `<prefix>config`, `<prefix>usage:<key>` |
/// | [`Collections`](Layout::Collections) | `mongodb://HOST/DATABASE` | `credentials` (by `id`), `configs`, `usage_stats` (by `key`) |
/// | [`Tables`](Layout::Tables) | `postgres://..?schema=public` | `credentials(filename, data)`, `configs(config_key, value)`, `usage_stats(usage_key, field, value)` |
///
/// A place that may be of more than one of them is an error that names them, unless the caller says which one it is. The
/// options of a URL are those of the backend; `schema` is `public` unless it is there.
///
/// # What is adopted
///
/// What is stored, field for field: names in `snake_case` and in `CamelCase` stay as they are. Where the Go program showed
/// something else than it had stored, what it had stored counts:
///
/// - **MongoDB**: it added `_id`, `id` and `updated_at` to a credential, and to others `_id`, `key` and `updated_at`. They
///   are left out. It stored most numbers as floats; those that are integers are adopted as such (`5.0` as `5`), as its own JSON
///   had them, and times as text. A usage field `a.b` had become a document; it is one counter again. Where racing
///   writers made several documents of one key, counters are added up, and of values the last one changed is adopted.
/// - **PostgreSQL**: it dropped the fields of a credential that it did not know when it read it, though they may be stored; they
///   are adopted. What it dropped when it wrote is gone: such credentials (no token, `0001-01-01T00:00:00Z`) are told.
/// - **Redis**: it showed counters as text; they are numbers. A config value that is no JSON is a text.
/// - **Its exported document**: what holds for the backend that it came from. Of MongoDB's credentials `id` and `updated_at` are
///   left out, and Redis's counters are numbers again.
/// - **Git**: it stored a text as it is, so the text `123` can't be told from the number, and is adopted as the number. It never
///   kept usage.
///
/// # What is not
///
/// Each thing that is there and is not adopted is a [`Remark`], and so is what was adopted with a change. Cache values, records
/// of config plans, credential states, columns and fields with times of changes have no place in a store. What can't be read (no
/// JSON, nested too deep, too large, a name that is no [`Key`](crate::Key), a counter that is no integer of 64 bits, a
/// symbolic link that leads out of the folder) is left where it is, and does not stop the others. Links within the folder are
/// followed: a mounted Kubernetes secret is a folder of them. A byte order mark before a file's text is skipped.
///
/// # Limits
///
/// A stream of records holds the names of all files or Redis keys, and a page of the values; and all remarks. A file is at
/// most 16 MiB, `config/config.json` 64 MiB, an exported document [`MAX_GO_BYTES`](crate::archive::MAX_GO_BYTES), all of which is
/// held. Redis, a directory and a standalone MongoDB server give no snapshot: what changes
/// meanwhile may be seen or not, so stop the program first.
pub struct Adoption {
    layout: Layout,
    source: Source,
    remarks: Arc<Mutex<Vec<Remark>>>,
}

/// How the Go program stored things. See [`Adoption`].
///
/// A variant says what is read; its name is that of the Go program's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// The directory of its File backend.
    Directory,
    /// A folder of credential files.
    Folder,
    /// The work tree of its Git backend.
    WorkTree,
    /// The document that it exported.
    Document,
    /// The collections of its MongoDB backend.
    Collections,
    /// The tables of its PostgreSQL backend.
    Tables,
    /// The keys of its Redis backend.
    Keys,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Directory,
        Self::Folder,
        Self::WorkTree,
        Self::Document,
        Self::Collections,
        Self::Tables,
        Self::Keys,
    ];

    /// The layout's stable name: `"file"`, `"mongodb"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "file",
            Self::Folder => "folder",
            Self::WorkTree => "git",
            Self::Document => "json",
            Self::Collections => "mongodb",
            Self::Tables => "postgres",
            Self::Keys => "redis",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|layout| layout.as_str() == name);
        found.ok_or_else(|| {
            Error::new(ErrorKind::InvalidValue, format!("a layout is one of {}", names(&Self::ALL)))
        })
    }
}

fn names(layouts: &[Layout]) -> String {
    layouts.iter().map(|layout| format!("`{layout}`")).collect::<Vec<_>>().join(", ")
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

const NOTHING: &str = "nothing there looks like what the Go program left";
const NAME_IT: &str = "name the layout (`--layout` on a command line) if it is there all the same";

type Pieces = Pin<Box<dyn Stream<Item = Result<Piece>> + Send>>;

impl Adoption {
    /// Looks at what the URL names and says which layout it is of; or takes it for the one that it is told.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if it is of no layout, [`InvalidValue`](ErrorKind::InvalidValue) if it may be of
    /// several, if the layout is none of this URL, or if it is a store of this crate, and what a server says.
    pub async fn open(url: &str, layout: Option<Layout>) -> Result<Self> {
        let (source, found) = Source::open(url, layout).await?;
        let (layout, source) = match (layout, found.as_slice()) {
            (Some(layout), _) => (layout, source),
            (None, [layout]) => (*layout, source),
            (None, []) => {
                return Err(Error::new(ErrorKind::NotFound, format!("{NOTHING}; {NAME_IT}")));
            }
            (None, several) => {
                let message = format!(
                    "it may be of more than one layout: {}; name one (`--layout` on a command line)",
                    names(several)
                );
                return Err(Error::new(ErrorKind::InvalidValue, message));
            }
        };
        Ok(Self { layout, source, remarks: Arc::default() })
    }

    /// Which layout it is.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Every record, sorted as [`export`](crate::Exportable::export) sorts them. Each stream reads everything anew. It ends
    /// after the first error: what is wrong with a single record is a remark and no error.
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

    /// What the last stream of records has come across so far: all of it once the stream has ended.
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
    /// The source, and of which layouts it may be.
    async fn open(url: &str, layout: Option<Layout>) -> Result<(Self, Vec<Layout>)> {
        let url = url.trim();
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            #[cfg(feature = "file")]
            "file" => {
                let path = crate::FileConfig::try_from(url)?.path;
                let found = path_layouts(path.clone(), layout).await?;
                Ok((Self::Path(path), found))
            }
            #[cfg(feature = "mongodb")]
            "mongodb" | "mongodb+srv" => {
                let found = only(Layout::Collections, layout)?;
                Ok((Self::MongoDb(MongoDb::open_foreign(url).await?), found))
            }
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => {
                let found = only(Layout::Tables, layout)?;
                Ok((Self::Postgres(Postgres::open_foreign(url).await?), found))
            }
            #[cfg(feature = "redis")]
            _ if scheme.starts_with("redis") => {
                let found = only(Layout::Keys, layout)?;
                Ok((Self::Redis(Redis::open(RedisConfig::try_from(url)?).await?), found))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidValue,
                "this build adopts nothing from such a URL; it begins with `file:`, `mongodb:`, `postgres:` or `redis:`",
            )),
        }
    }

    // Only a path can be of several layouts.
    #[cfg_attr(not(feature = "file"), allow(unused_variables))]
    fn pieces(&self, layout: Layout) -> Pieces {
        match self {
            #[cfg(feature = "file")]
            Self::Path(path) if layout == Layout::Document => Box::pin(document_pieces(path.clone())),
            #[cfg(feature = "file")]
            Self::Path(path) => Box::pin(directory_pieces(path.clone(), layout)),
            #[cfg(feature = "mongodb")]
            Self::MongoDb(mongodb) => Box::pin(mongodb.adopt()),
            #[cfg(feature = "postgres")]
            Self::Postgres(postgres) => Box::pin(postgres.adopt()),
            #[cfg(feature = "redis")]
            Self::Redis(redis) => Box::pin(redis.adopt()),
        }
    }
}

/// What there is behind a URL that says it already.
fn only(layout: Layout, wanted: Option<Layout>) -> Result<Vec<Layout>> {
    match wanted {
        Some(wanted) if wanted != layout => Err(Error::new(
            ErrorKind::InvalidValue,
            format!("behind this URL there is no layout but `{layout}`"),
        )),
        _ => Ok(vec![layout]),
    }
}

#[cfg(feature = "file")]
async fn path_layouts(path: PathBuf, layout: Option<Layout>) -> Result<Vec<Layout>> {
    const THESE: [Layout; 4] = [Layout::Directory, Layout::Folder, Layout::WorkTree, Layout::Document];
    match layout {
        None => {
            off_thread(move || match path.is_file() {
                true => document::recognise(&path),
                false => folder::recognise(&path),
            })
            .await?
        }
        Some(layout) if THESE.contains(&layout) => Ok(vec![layout]),
        Some(_) => Err(Error::new(
            ErrorKind::InvalidValue,
            format!("behind this URL there is one of the layouts {}", names(&THESE)),
        )),
    }
}

#[cfg(feature = "file")]
fn document_pieces(path: PathBuf) -> impl Stream<Item = Result<Piece>> + Send + 'static {
    stream::once(async move { off_thread(move || document::read(&path)).await? })
        .map_ok(|pieces| stream::iter(pieces).map(Ok))
        .try_flatten()
}

/// How many files are read at a time.
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

/// File systems can be slow.
#[cfg(feature = "file")]
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Error::new(ErrorKind::Internal, "a task that read files panicked"))
}
