//! The directory of the repository: finds or creates it, locks it, and removes what a killed process left in
//! it.

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
    GitOptions,
    error::{failed, foreign, refused},
    marker::Marker,
};
use crate::{
    Error, ErrorKind, Result,
    backend::local::{
        atomic_file::replace,
        directory::{io_failed, locate, remove},
    },
};

/// The store's own directory in `.git`.
pub(super) const OWN_DIRECTORY: &str = "gateway-storage";

/// A temporary file in the work tree, for a `.git` on another file system.
pub(super) const TEMPORARY: &str = ".gateway-storage.new";

/// Attempts to remove a new repository: the thread for the remote may still write into it.
const REMOVE_ATTEMPTS: u32 = 20;

/// The store's settings, over those of the repository. The settings of the system and the user are not read,
/// except `safe.directory`, which libgit2 reads itself, and attributes.
fn settings(options: &GitOptions) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "# For gateway-storage; git itself does not read it.\n\
         [core]\n\tfsyncObjectFiles = true\n\
         [user]\n\tname = \"{}\"\n\temail = \"{}\"\n",
        quoted(&options.author_name),
        quoted(&options.author_email)
    )
}

/// An open repository, locked for this process until it is dropped.
pub(super) struct LockedRepository {
    /// The work tree.
    pub(super) path: PathBuf,
    /// `.git`.
    pub(super) git: PathBuf,
    /// Marks that locks of the branch, `HEAD` and the index may belong to this process.
    pub(super) writing: Arc<Marker>,
    /// Marks that locks of a fetch may belong to this process.
    pub(super) fetching: Arc<Marker>,
    /// Set if this opening created the repository: whether it created the directory too.
    created: Option<bool>,
    _lock: File,
}

impl LockedRepository {
    /// Opens or creates the repository, and locks it.
    pub(super) fn open(options: &GitOptions) -> Result<(Self, Repository)> {
        let (path, exists) = locate(&options.path)?;
        if !exists {
            if !options.create {
                return Err(missing(&path));
            }
            make(&path)?;
        }
        let (git, mut created) = (path.join(".git"), None);
        match fs::symlink_metadata(&git) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(refused(format!(
                    "the `.git` of {} is not a directory: a linked work tree, or a submodule",
                    path.display()
                )));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_failed(&git, "can't be accessed", error));
            }
            Err(_) if !options.create => return Err(missing(&path)),
            Err(_) => {
                make_repository(options, &path)?;
                created = Some(!exists);
            }
        }
        let ours = git.join(OWN_DIRECTORY);
        let locked = Self {
            _lock: lock(&path, &ours)?,
            writing: Marker::new(ours.join("writing")),
            fetching: Marker::new(ours.join("fetching")),
            created,
            path,
            git,
        };
        locked.remove_stale_locks(options)?;
        let own_settings = ours.join("config");
        replace(&own_settings, settings(options).as_bytes())
            .map_err(|error| io_failed(&own_settings, "can't be written", error))?;
        let repository = open_repository(&locked.path)?;
        locked.check(options, &repository)?;
        for private in [&locked.git, &ours] {
            make_private(private)?;
        }
        Ok((locked, repository))
    }

    /// A file in the store's own directory.
    pub(super) fn own_file(&self, name: &str) -> PathBuf {
        self.git.join(OWN_DIRECTORY).join(name)
    }

    /// Removes the locks of a process that was killed while it wrote. The store's own lock excludes a running
    /// one.
    fn remove_stale_locks(&self, options: &GitOptions) -> Result<()> {
        // Only the store uses this name.
        remove(&self.git.join(options.tracking() + ".lock"))?;
        if self.fetching.exists() {
            remove(&self.git.join("shallow.lock"))?;
            remove_matching(&self.git.join("objects/pack"), |name| name.starts_with("pack_git2_"))?;
            self.fetching.clear()?;
        }
        if !self.writing.exists() {
            return Ok(());
        }
        for lock in ["index".to_owned(), "HEAD".to_owned(), "packed-refs".to_owned(), options.reference()] {
            remove(&self.git.join(lock + ".lock"))?;
        }
        remove_matching(&self.git.join(OWN_DIRECTORY), |name| name.ends_with(".new"))?;
        remove(&self.path.join(TEMPORARY))?;
        self.writing.clear()
    }

    /// Removes a repository that this opening created and that is still empty.
    pub(super) fn remove_new(&self) {
        let Some(is_directory_ours) = self.created else { return };
        let is_alone = fs::read_dir(&self.path).is_ok_and(|entries| {
            entries.into_iter().all(|entry| entry.is_ok_and(|entry| entry.path() == self.git))
        });
        if !is_alone {
            return;
        }
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir_all(&self.git) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                _ => break,
            }
        }
        if is_directory_ours {
            // Fails, as it should, if the directory is no longer empty.
            drop(fs::remove_dir(&self.path));
        }
    }

    /// Refuses a repository that the store can't use.
    fn check(&self, options: &GitOptions, repository: &Repository) -> Result<()> {
        let path = self.path.display();
        // libgit2 resolves the links in it.
        let is_here =
            |tree: &Path| self.path.canonicalize().is_ok_and(|path| path.components().eq(tree.components()));
        if repository.is_bare() || !repository.workdir().is_some_and(is_here) {
            return Err(refused(format!("the repository in {path} has no work tree, or has it elsewhere")));
        }
        if repository.is_shallow() {
            return Err(refused(format!(
                "the repository in {path} is shallow: fetch its whole history first"
            )));
        }
        if repository.state() != RepositoryState::Clean {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("git has an unfinished merge, rebase or similar in {path}: finish it first"),
            ));
        }
        ["credentials/a.json", "config/a.json"]
            .iter()
            .try_for_each(|sample| check_filter(repository, sample))?;
        let reference = options.reference();
        if is_checked_out(repository, &reference) {
            return Ok(());
        }
        let head = repository
            .find_reference("HEAD")
            .map_err(|error| failed(format!("the HEAD of {path} can't be read"), error))?;
        let target = head.symbolic_target().ok().flatten();
        // Without a commit the name of the branch is arbitrary: `git init` and an empty remote choose one.
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
            "the repository in {path} is not on the configured branch: check that branch out, or name the other one"
        )))
    }
}

/// Refuses a file that git would filter, because the store runs no filters: what git-crypt should encrypt
/// would be sent as plain text.
pub(super) fn check_filter(repository: &Repository, file: &str) -> Result<()> {
    let filter = repository
        .get_attr(Path::new(file), "filter", AttrCheckFlags::FILE_THEN_INDEX)
        .map_err(|error| failed("the attributes of the repository can't be read", error))?;
    match AttrValue::from_string(filter) {
        AttrValue::Unspecified | AttrValue::False => Ok(()),
        _ => Err(refused(
            "the repository's attributes set a filter, such as git-crypt or LFS, for files of the store, and this backend runs none: exclude `credentials` and `config` in `.gitattributes` (`-filter`), or name another repository",
        )),
    }
}

/// Creates the directory and its missing parents.
fn make(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| io_failed(path, "can't be created", error))
}

fn make_repository(options: &GitOptions, path: &Path) -> Result<()> {
    let mut entries = fs::read_dir(path).map_err(|error| io_failed(path, "can't be read", error))?;
    if entries.next().is_some() {
        return Err(refused(format!(
            "{} is not empty and not a repository; name an empty directory, or run `git init` in it",
            path.display()
        )));
    }
    make_private(path)?;
    // Without templates, because they contain hooks.
    let mut init = RepositoryInitOptions::new();
    init.initial_head(&options.branch).external_template(false).no_reinit(true);
    Repository::init_opts(path, &init)
        .map(drop)
        .map_err(|error| failed(format!("a repository can't be created in {}", path.display()), error))
}

/// Whether `HEAD` is at this branch.
pub(super) fn is_checked_out(repository: &Repository, reference: &str) -> bool {
    let head = repository.find_reference("HEAD");
    head.is_ok_and(|head| head.symbolic_target().ok().flatten() == Some(reference))
}

/// Opens a handle of the repository with the store's settings. Each thread has its own.
pub(super) fn open_repository(path: &Path) -> Result<Repository> {
    let open = || {
        let repository = Repository::open(path)?;
        let mut config = Config::new()?;
        config.add_file(&path.join(".git/config"), ConfigLevel::Local, false)?;
        config.add_file(&path.join(".git").join(OWN_DIRECTORY).join("config"), ConfigLevel::App, false)?;
        repository.set_config(&config)?;
        Ok(repository)
    };
    open().map_err(|error: git2::Error| match error.code() {
        ErrorCode::Owner => foreign(path, &error),
        _ => failed(format!("the repository in {} can't be opened", path.display()), error),
    })
}

fn lock(path: &Path, ours: &Path) -> Result<File> {
    make(ours)?;
    let name = ours.join("lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&name)
        .map_err(|error| io_failed(&name, "can't be opened", error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Busy,
            format!("the store in {} is already open in this or another process", path.display()),
        )),
        Err(fs::TryLockError::Error(error)) => Err(io_failed(&name, "can't be locked", error)),
    }
}

/// Removes the files of a directory with matching names.
fn remove_matching(directory: &Path, matches: fn(&str) -> bool) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        if matches(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn make_private(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|error| io_failed(path, "can't be restricted to its owner", error))
}

/// The commit that a file of the store names.
pub(super) fn read_id(path: &Path) -> Option<Oid> {
    Oid::from_str(fs::read_to_string(path).ok()?.trim()).ok()
}

#[cold]
fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no repository in {}", path.display()))
}
