//! The directory of the repository: found or made, locked, and what a process that died left in it cleared up.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use git2::{
    AttrCheckFlags, AttrValue, Config, ConfigLevel, ErrorCode, Oid, Repository, RepositoryInitOptions,
    RepositoryState,
};

use super::{
    GitConfig,
    failure::{failed, foreign, io_failed, refused},
    marker::{Marker, Writing},
};
use crate::{Error, ErrorKind, Result};

/// Our own folder in `.git`.
pub(super) const OURS: &str = "gateway-storage";

/// A file of the work tree before it has its name, where `.git` is on another file system.
pub(super) const ASIDE: &str = ".gateway-storage.new";

/// How often it is tried to take a new repository away again: the remote's thread may still write into it.
const UNMADE: u32 = 20;

/// What we set for ourselves, over the repository's own settings. The system's and the user's are not read, but for
/// `safe.directory`, which libgit2 looks up by itself, and attributes.
fn settings(config: &GitConfig) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "# For gateway-storage; git itself does not read it.\n\
         [core]\n\tfsyncObjectFiles = true\n\
         [user]\n\tname = \"{}\"\n\temail = \"{}\"\n",
        quoted(&config.author_name),
        quoted(&config.author_email)
    )
}

/// An open repository, locked for this process until it is dropped.
pub(super) struct Place {
    /// The work tree.
    pub(super) path: PathBuf,
    /// `.git`.
    pub(super) git: PathBuf,
    /// Locks of the branch, `HEAD`, the index may be ours.
    writing: Arc<Marker>,
    /// Locks that only fetching takes may be ours.
    pub(super) fetching: Arc<Marker>,
    /// Whether the directory was made by this opening, if the repository was.
    made: Option<bool>,
    _lock: File,
}

impl Place {
    /// Opens the repository, or makes it, and locks it.
    pub(super) fn open(config: &GitConfig) -> Result<(Self, Repository)> {
        let path = absolute(&config.path)?;
        let is_there = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => true,
            Ok(found) if found.is_symlink() => {
                return Err(refused(format!(
                    "{} is a symbolic link; name the directory itself",
                    path.display()
                )));
            }
            Ok(_) => return Err(refused(format!("{} is not a directory", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(at(&path, "can't be looked at", error)),
        };
        if !is_there {
            if !config.create {
                return Err(missing(&path));
            }
            make(&path)?;
        }
        let (git, mut made) = (path.join(".git"), None);
        match fs::symlink_metadata(&git) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(refused(format!(
                    "the `.git` of {} is not a directory: a linked work tree, or a submodule",
                    path.display()
                )));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at(&git, "can't be looked at", error));
            }
            Err(_) if !config.create => return Err(missing(&path)),
            Err(_) => {
                make_repository(config, &path)?;
                made = Some(!is_there);
            }
        }
        let ours = git.join(OURS);
        let place = Self {
            _lock: lock(&path, &ours)?,
            writing: Marker::new(ours.join("writing")),
            fetching: Marker::new(ours.join("fetching")),
            made,
            path,
            git,
        };
        place.clear_up(config)?;
        write_file(&ours.join("config"), settings(config).as_bytes())?;
        let repository = open_repository(&place.path)?;
        place.check(config, &repository)?;
        for private in [&place.git, &ours] {
            make_private(private)?;
        }
        Ok((place, repository))
    }

    /// Another handle on the same repository, for another thread.
    pub(super) fn reopen(path: &Path) -> Result<Repository> {
        open_repository(path)
    }

    /// A file in our own folder.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        self.git.join(OURS).join(name)
    }

    /// Says on disk that locks of the repository may be ours, until the result is dropped.
    pub(super) fn begin(&self) -> Result<Writing> {
        self.writing.begin()
    }

    /// Removes the locks that a process left which died while it wrote. There is no other one: we have the store's own lock.
    fn clear_up(&self, config: &GitConfig) -> Result<()> {
        // This name is ours alone.
        remove(&self.git.join(config.tracking() + ".lock"))?;
        if self.fetching.is_left() {
            remove(&self.git.join("shallow.lock"))?;
            remove_those(&self.git.join("objects/pack"), |name| name.starts_with("pack_git2_"))?;
            self.fetching.clear()?;
        }
        if !self.writing.is_left() {
            return Ok(());
        }
        for lock in ["index".to_owned(), "HEAD".to_owned(), "packed-refs".to_owned(), config.reference()] {
            remove(&self.git.join(lock + ".lock"))?;
        }
        remove_those(&self.git.join(OURS), |name| name.ends_with(".new"))?;
        remove(&self.path.join(ASIDE))?;
        self.writing.clear()
    }

    /// Takes a repository away again that was made by this opening, and that nothing has come into.
    pub(super) fn unmake(&self) {
        let Some(is_directory_ours) = self.made else { return };
        let is_alone = fs::read_dir(&self.path).is_ok_and(|entries| {
            entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.path() == self.git))
        });
        if !is_alone {
            return;
        }
        for _ in 0..UNMADE {
            match fs::remove_dir_all(&self.git) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                _ => break,
            }
        }
        if is_directory_ours {
            // If somebody has put something into it, it stays.
            drop(fs::remove_dir(&self.path));
        }
    }

    /// Refuses a repository that is not as we can use it.
    fn check(&self, config: &GitConfig, repository: &Repository) -> Result<()> {
        let path = self.path.display();
        // libgit2 names it without links, as those that lead to it may be.
        let is_here =
            |tree: &Path| self.path.canonicalize().is_ok_and(|path| path.components().eq(tree.components()));
        if repository.is_bare() || !repository.workdir().is_some_and(is_here) {
            return Err(refused(format!("the repository in {path} has its work tree elsewhere, or none")));
        }
        if repository.is_shallow() {
            return Err(refused(format!(
                "the repository in {path} is shallow: fetch its whole history first"
            )));
        }
        if repository.state() != RepositoryState::Clean {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("a merge, rebase or the like is under way in {path}: finish it with git first"),
            ));
        }
        ["credentials/a.json", "config/a.json"]
            .iter()
            .try_for_each(|sample| check_filter(repository, sample))?;
        let reference = config.reference();
        if is_checked_out(repository, &reference) {
            return Ok(());
        }
        let head = repository
            .find_reference("HEAD")
            .map_err(|error| failed(format!("the HEAD of {path} can't be read"), error))?;
        let target = head.symbolic_target().ok().flatten();
        // Without a commit the branch has no meaning yet: `git init` and an empty remote make one of some name.
        let is_unborn = target.is_some_and(|target| {
            repository.refname_to_id(target).is_err_and(|error| error.code() == ErrorCode::NotFound)
        });
        let is_empty = repository.references().is_ok_and(|mut references| references.next().is_none());
        if is_unborn && is_empty {
            return repository
                .set_head(&reference)
                .map_err(|error| failed(format!("the HEAD of {path} can't be set"), error));
        }
        Err(refused(format!(
            "the repository in {path} is at another branch than the one of the configuration: check it out, or name the other one"
        )))
    }
}

/// Refuses a file that git would send through a filter, which we don't run: what git-crypt should encrypt would be sent as it is.
pub(super) fn check_filter(repository: &Repository, file: &str) -> Result<()> {
    let filter = repository
        .get_attr(Path::new(file), "filter", AttrCheckFlags::FILE_THEN_INDEX)
        .map_err(|error| failed("the attributes of the repository can't be read", error))?;
    match AttrValue::from_string(filter) {
        AttrValue::Unspecified | AttrValue::False => Ok(()),
        _ => Err(refused(
            "the repository's attributes give files of the store a filter, such as git-crypt's or LFS', which this backend does not run: take `credentials` and `config` out of that line of `.gitattributes` (`-filter`), or name another repository",
        )),
    }
}

/// Absolute, since the working directory may change; by components, since `link/` would follow the link.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map(|path| path.components().collect())
        .map_err(|error| at(path, "can't be looked at", error))
}

/// Makes the directory and what is missing above it.
fn make(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| at(path, "can't be created", error))
}

fn make_repository(config: &GitConfig, path: &Path) -> Result<()> {
    let mut entries = fs::read_dir(path).map_err(|error| at(path, "can't be read", error))?;
    if entries.next().is_some() {
        return Err(refused(format!(
            "{} holds other things and no repository; name an empty directory, or make one of it with `git init`",
            path.display()
        )));
    }
    make_private(path)?;
    // Without templates: they hold hooks.
    let mut options = RepositoryInitOptions::new();
    options.initial_head(&config.branch).external_template(false).no_reinit(true);
    Repository::init_opts(path, &options)
        .map(drop)
        .map_err(|error| failed(format!("a repository can't be made in {}", path.display()), error))
}

/// Whether `HEAD` is at this branch.
pub(super) fn is_checked_out(repository: &Repository, reference: &str) -> bool {
    let head = repository.find_reference("HEAD");
    head.is_ok_and(|head| head.symbolic_target().ok().flatten() == Some(reference))
}

fn open_repository(path: &Path) -> Result<Repository> {
    let open = || {
        let repository = Repository::open(path)?;
        let mut config = Config::new()?;
        config.add_file(&path.join(".git/config"), ConfigLevel::Local, false)?;
        config.add_file(&path.join(".git").join(OURS).join("config"), ConfigLevel::App, false)?;
        repository.set_config(&config)?;
        Ok(repository)
    };
    open().map_err(|error: git2::Error| match error.code() {
        ErrorCode::Owner => foreign(path, &error),
        _ => failed(format!("the repository in {} can't be opened", path.display()), error),
    })
}

fn lock(path: &Path, ours: &Path) -> Result<File> {
    match DirBuilder::new().mode(0o700).create(ours) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(at(ours, "can't be created", error));
        }
        _ => {}
    }
    let name = ours.join("lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&name)
        .map_err(|error| at(&name, "can't be opened", error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Busy,
            format!("the store in {} is open already, in this process or another one", path.display()),
        )),
        Err(fs::TryLockError::Error(error)) => Err(at(&name, "can't be locked", error)),
    }
}

/// Writes a small file whole: aside, synced, renamed.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let aside = path.with_extension("new");
    let write = || {
        remove_io(&aside)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        io::Write::write_all(&mut file, content)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(|error| at(path, "can't be written", error))
}

fn remove_io(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the files of a directory that have such names.
fn remove_those(directory: &Path, is_meant: fn(&str) -> bool) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        if is_meant(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn remove(path: &Path) -> Result<()> {
    remove_io(path).map_err(|error| at(path, "can't be removed", error))
}

fn make_private(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|error| at(path, "can't be made private to its owner", error))
}

/// The commit that an own file names.
pub(super) fn read_id(path: &Path) -> Option<Oid> {
    Oid::from_str(fs::read_to_string(path).ok()?.trim()).ok()
}

#[cold]
fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no repository in {}", path.display()))
}

#[cold]
pub(super) fn at(path: &Path, what: &str, error: io::Error) -> Error {
    io_failed(format!("{} {what}", path.display()), error)
}
