//! The remote: one thread that speaks to it, so that nobody waits for a network that is silent.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use git2::{
    ConfigLevel, Cred, CredentialType, Direction, ErrorCode, FetchOptions, ObjectType, Odb, Oid, PushOptions,
    RemoteCallbacks, RemoteConnection, Repository, Sort,
};

use super::{
    GitConfig,
    failure::failed,
    ledger::{base, target},
    marker::Marker,
    options::local_path,
    packs::Packs,
    place::{OURS, Place, is_checked_out},
};
use crate::{Error, ErrorKind, Result};

/// From so many files on, what is sent is one pack.
const PACKED: usize = 100;

/// What became of commits that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Accepted,
    /// The remote has others, or does not want these.
    Rejected,
    /// Somebody else is sending at this moment.
    Busy,
}

enum Errand {
    Fetch(Sender<Result<Option<Oid>>>),
    Push { commit: Oid, expected: Option<Oid>, reply: Sender<Result<Sent>> },
}

/// The handle of the thread. It is not waited for when it is dropped.
pub(super) struct Courier {
    errands: Sender<Errand>,
    patience: Duration,
}

/// An answer that is on its way.
pub(super) struct Answer<T>(Receiver<Result<T>>);

impl<T> Answer<T> {
    /// The answer, if it is there.
    pub(super) fn now(&self) -> Option<Result<T>> {
        self.0.try_recv().ok()
    }

    fn wait(self, patience: Duration) -> Result<T> {
        self.0.recv_timeout(patience).unwrap_or_else(|end| {
            let silent = "the remote did not answer in time: `remote_timeout` is how long it may take";
            let gone = "the thread that speaks to the remote is gone";
            let (kind, message) = match end {
                RecvTimeoutError::Timeout => (ErrorKind::Unavailable, silent),
                RecvTimeoutError::Disconnected => (ErrorKind::Internal, gone),
            };
            Err(Error::new(kind, message))
        })
    }
}

impl Courier {
    pub(super) fn start(place: &Place, config: &GitConfig, remote: String) -> Result<Self> {
        let (repository, fetching) = (Place::reopen(&place.path)?, place.fetching.clone());
        let (errands, waiting) = channel();
        let packs = Packs::new(&place.git);
        let route = Route { repository, remote, fetching, packs, config: config.clone() };
        thread::Builder::new()
            .name("gateway-storage-git-remote".into())
            .spawn(move || route.run(&waiting))
            .map_err(|error| {
            Error::new(ErrorKind::Unavailable, "the thread for the remote can't be started")
                .with_source(error)
        })?;
        Ok(Self { errands, patience: config.remote_timeout })
    }

    /// Fetches the remote's branch, and gives its newest commit, if it has one.
    pub(super) fn fetch(&self) -> Result<Option<Oid>> {
        self.fetching().wait(self.patience)
    }

    /// Sends a commit and what it stands on, if the remote's branch is where it is expected to be.
    pub(super) fn push(&self, commit: Oid, expected: Option<Oid>) -> Result<Sent> {
        self.pushing(commit, expected).wait(self.patience)
    }

    pub(super) fn fetching(&self) -> Answer<Option<Oid>> {
        let (reply, answer) = channel();
        // If the thread is gone, so is the answer.
        drop(self.errands.send(Errand::Fetch(reply)));
        Answer(answer)
    }

    pub(super) fn pushing(&self, commit: Oid, expected: Option<Oid>) -> Answer<Sent> {
        let (reply, answer) = channel();
        drop(self.errands.send(Errand::Push { commit, expected, reply }));
        Answer(answer)
    }
}

/// The thread's own side.
struct Route {
    repository: Repository,
    remote: String,
    fetching: Arc<Marker>,
    packs: Packs,
    config: GitConfig,
}

impl Route {
    fn run(mut self, errands: &Receiver<Errand>) {
        while let Ok(errand) = errands.recv() {
            match errand {
                Errand::Fetch(reply) => drop(reply.send(self.fetch())),
                Errand::Push { commit, expected, reply } => {
                    let sent = match (self.is_kept(expected), local_path(&self.remote)) {
                        (Err(error), _) => Err(unread(error)),
                        // Fetching says what is wrong, or that the remote has moved on.
                        (Ok(false), _) => Ok(Sent::Rejected),
                        (Ok(true), Some(path)) => self.push_here(&path, commit, expected),
                        (Ok(true), None) => self.push_there(commit, expected),
                    };
                    let known = match sent {
                        Ok(Sent::Accepted) => self.track(commit),
                        _ => Ok(()),
                    };
                    drop(reply.send(known.and(sent)));
                }
            }
        }
    }

    fn track(&self, commit: Oid) -> Result<()> {
        self.repository
            .reference(&self.config.tracking(), commit, true, "gateway-storage: remote")
            .map(drop)
            .map_err(|error| failed("what the remote has can't be noted", error))
    }

    fn fetch(&mut self) -> Result<Option<Oid>> {
        let _fetching = self.fetching.begin()?;
        let fetch = || {
            let mut remote = self.repository.remote_anonymous(&self.remote)?;
            let reference = self.config.reference();
            let mut connection = remote.connect_auth(Direction::Fetch, Some(self.callbacks()), None)?;
            let Some(tip) = tip_of(&connection, &reference)? else { return Ok(None) };
            if self.repository.refname_to_id(&self.config.tracking()).ok() != Some(tip) {
                let mut options = FetchOptions::new();
                options.remote_callbacks(self.callbacks()).update_fetchhead(false);
                connection.remote().download(&[&reference], Some(&mut options))?;
            }
            Ok(Some(tip))
        };
        let tip = fetch().map_err(unreached)?;
        self.packs.sync()?;
        if !self.is_kept(tip).map_err(unread)? {
            return Err(tip.map_or_else(gone, |_| rewritten()));
        }
        tip.map_or(Ok(()), |tip| self.track(tip))?;
        Ok(tip)
    }

    /// Whether the remote still has what the branch here and the remote once had in common: what it has lost was removed
    /// there, and would come back with our commits. Histories that never had anything in common are not joined either.
    fn is_kept(&self, tip: Option<Oid>) -> Result<bool, git2::Error> {
        let Some(here) = target(&self.repository, &self.config.reference())? else { return Ok(true) };
        if let Some(tip) = tip
            && base(&self.repository, here, tip)?.is_none()
        {
            return Ok(false);
        }
        let known = fetched(&self.repository, &self.config.branch, &self.config.tracking())?;
        let lost = lacking(&self.repository, tip, &known)?;
        Ok(lost.is_empty() || lacking(&self.repository, tip, &[here])?.is_disjoint(&lost))
    }

    /// Into a repository of this machine. libgit2's own way there moves the branch whatever it has become since.
    fn push_here(&self, path: &Path, commit: Oid, expected: Option<Oid>) -> Result<Sent> {
        let there = Repository::open(path).map_err(unreached)?;
        let mut settings = there.config().map_err(unreached)?;
        let ours = self.repository.path().join(OURS).join("config");
        settings.add_file(&ours, ConfigLevel::App, true).map_err(unreached)?;
        let reference = self.config.reference();
        if !there.is_bare() && is_checked_out(&there, &reference) {
            return Err(Error::new(
                ErrorKind::Denied,
                "the remote is not bare and has this branch checked out: its work tree would be left behind",
            ));
        }
        let push = || {
            let is_on_top = expected.is_none_or(|expected| {
                self.repository.graph_descendant_of(commit, expected).unwrap_or(false)
            });
            if !is_on_top || there.refname_to_id(&reference).ok() != expected {
                return Ok(Sent::Rejected);
            }
            let mut walk = self.repository.revwalk()?;
            walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)?;
            walk.push(commit)?;
            expected.map_or(Ok(()), |expected| walk.hide(expected))?;
            if differ(&self.repository, expected, commit)? < PACKED {
                let store = there.odb()?;
                walk.into_iter().try_for_each(|commit| copy(&self.repository, &store, commit?))?;
            } else {
                let mut pack = self.repository.packbuilder()?;
                pack.set_threads(1);
                pack.insert_walk(&mut walk)?;
                pack.write(&there.commondir().join("objects/pack"), 0o444)?;
                there.odb()?.refresh()?;
            }
            let before = expected.unwrap_or(Oid::ZERO_SHA1);
            match there.reference_matching(&reference, commit, true, before, "push") {
                Ok(_) => Ok(Sent::Accepted),
                Err(error) if error.code() == ErrorCode::Modified => Ok(Sent::Rejected),
                Err(error) if error.code() == ErrorCode::Locked => Ok(Sent::Busy),
                Err(error) => Err(error),
            }
        };
        push().map_err(unreached)
    }

    /// Over a network. The server moves the branch only if it still is where we saw it.
    fn push_there(&self, commit: Oid, expected: Option<Oid>) -> Result<Sent> {
        let refused = std::cell::Cell::new(false);
        let push = || {
            let mut remote = self.repository.remote_anonymous(&self.remote)?;
            let reference = self.config.reference();
            let mut connection = remote.connect_auth(Direction::Push, Some(self.callbacks()), None)?;
            if tip_of(&connection, &reference)? != expected {
                refused.set(true);
                return Ok(());
            }
            let mut callbacks = self.callbacks();
            callbacks.push_update_reference(|_, status| {
                refused.set(refused.get() || status.is_some());
                Ok(())
            });
            let mut options = PushOptions::new();
            options.remote_callbacks(callbacks).packbuilder_parallelism(1);
            connection.remote().push(&[format!("{commit}:{reference}")], Some(&mut options))
        };
        match push() {
            Ok(()) if refused.get() => Ok(Sent::Rejected),
            Ok(()) => Ok(Sent::Accepted),
            Err(error) if error.code() == ErrorCode::NotFastForward => Ok(Sent::Rejected),
            Err(error) => Err(unreached(error)),
        }
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        let mut asked = 0;
        callbacks.credentials(move |url, user, allowed| {
            asked += 1;
            // Whoever refuses a credential asks again, without end.
            if asked > 3 {
                return Err(git2::Error::new(ErrorCode::Auth, git2::ErrorClass::Callback, "refused"));
            }
            let user = self.config.username.as_deref().or(user).unwrap_or("git");
            if allowed.contains(CredentialType::USERNAME) {
                return Cred::username(user);
            }
            if allowed.contains(CredentialType::SSH_KEY) {
                return match &self.config.ssh_key {
                    Some(key) => Cred::ssh_key(user, None, key, None),
                    None => Cred::ssh_key_from_agent(user),
                };
            }
            match self.token() {
                // Never over a line that others can read.
                Some(token) if url.starts_with("https://") => Cred::userpass_plaintext(user, &token),
                _ => Err(git2::Error::new(ErrorCode::Auth, git2::ErrorClass::Callback, "no token")),
            }
        });
        callbacks
    }

    /// The token, as it is now: it may have been renewed.
    fn token(&self) -> Option<String> {
        let GitConfig { token, token_env, token_file, .. } = &self.config;
        let from_file = |path: &PathBuf| fs::read_to_string(path).ok().map(|token| token.trim().to_owned());
        token
            .clone()
            .or_else(|| token_env.as_ref().and_then(|name| std::env::var(name).ok()))
            .or_else(|| token_file.as_ref().and_then(from_file))
    }
}

/// What a remote is known to have had on this branch: from us, from what git's own remotes were at, and from what git
/// fetched last.
fn fetched(repository: &Repository, branch: &str, tracking: &str) -> Result<Vec<Oid>, git2::Error> {
    let text = |name: &str| {
        fs::read(repository.path().join(name)).map(|text| String::from_utf8_lossy(&text).into_owned())
    };
    let mut known = Vec::new();
    for reference in repository.references_glob("refs/remotes/*")? {
        let reference = reference?;
        let Some(name) = reference.name().ok().filter(|name| name.ends_with(&format!("/{branch}"))) else {
            continue;
        };
        known.push(reference.peel_to_commit()?.id());
        // Where it was before; ours never moves off what it was at.
        if name != tracking {
            let moves = text(&format!("logs/{name}")).unwrap_or_default();
            let ids = moves.lines().flat_map(|line| line.split(' ').take(2));
            known.extend(ids.filter_map(|id| Oid::from_str(id).ok()));
        }
    }
    // Lines of an id, `not-for-merge` or nothing, and where it is from, parted by tabs.
    for line in text("FETCH_HEAD").unwrap_or_default().lines() {
        let mut parts = line.split('\t');
        let (id, merged, from) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let is_other = from.starts_with("branch '") && !from.starts_with(&format!("branch '{branch}' "));
        if merged == Some("") && !is_other && !from.starts_with("tag '") {
            known.extend(id.and_then(|id| Oid::from_str(id).ok()));
        }
    }
    // What git has cleared away is not in the branch here either.
    known.retain(|id| repository.find_commit(*id).is_ok());
    Ok(known)
}

/// The commits of some histories that another one does not have.
fn lacking(repository: &Repository, tip: Option<Oid>, of: &[Oid]) -> Result<HashSet<Oid>, git2::Error> {
    let mut walk = repository.revwalk()?;
    of.iter().try_for_each(|id| walk.push(*id))?;
    tip.map_or(Ok(()), |tip| walk.hide(tip))?;
    walk.collect()
}

/// Where the remote's branch is.
fn tip_of(connection: &RemoteConnection<'_, '_, '_>, reference: &str) -> Result<Option<Oid>, git2::Error> {
    Ok(connection.list()?.iter().find(|head| head.name() == reference).map(git2::RemoteHead::oid))
}

/// How many files two commits have differently.
fn differ(repository: &Repository, old: Option<Oid>, new: Oid) -> Result<usize, git2::Error> {
    let tree = |id: Oid| repository.find_commit(id)?.tree();
    let old = old.map(tree).transpose()?;
    Ok(repository.diff_tree_to_tree(old.as_ref(), Some(&tree(new)?), None)?.deltas().len())
}

/// Copies a commit whose parents are there already, and what it holds.
fn copy(from: &Repository, to: &Odb<'_>, commit: Oid) -> Result<(), git2::Error> {
    copy_tree(from, to, from.find_commit(commit)?.tree_id())?;
    copy_object(from, to, commit)
}

/// Whatever is there has all that it holds there, too: so the tree itself comes last.
fn copy_tree(from: &Repository, to: &Odb<'_>, tree: Oid) -> Result<(), git2::Error> {
    if to.exists(tree) {
        return Ok(());
    }
    for entry in from.find_tree(tree)?.iter() {
        match entry.kind() {
            Some(ObjectType::Tree) => copy_tree(from, to, entry.id())?,
            Some(ObjectType::Blob) => copy_object(from, to, entry.id())?,
            _ => {}
        }
    }
    copy_object(from, to, tree)
}

fn copy_object(from: &Repository, to: &Odb<'_>, id: Oid) -> Result<(), git2::Error> {
    if !to.exists(id) {
        let store = from.odb()?;
        let object = store.read(id)?;
        to.write(object.kind(), object.data())?;
    }
    Ok(())
}

#[cold]
fn unreached(error: git2::Error) -> Error {
    let error = failed("the remote can't be reached, or refuses", error);
    match error.kind() {
        ErrorKind::Denied => error,
        // Whatever it is: the remote can't be used now.
        _ => {
            let code = error.code().unwrap_or_default().to_owned();
            Error::new(ErrorKind::Unavailable, "the remote can't be reached, or refuses").with_code(code)
        }
    }
}

#[cold]
fn unread(error: git2::Error) -> Error {
    failed("the history can't be read", error)
}

#[cold]
fn gone() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the remote has no such branch, or none any more: `git push REMOTE BRANCH` puts it there",
    )
    .with_retryable(false)
}

#[cold]
fn rewritten() -> Error {
    Error::new(
        ErrorKind::Conflict,
"the remote's history was rewritten, or is another one: bring this clone to it with git, or what was removed there would come back",
    )
    .with_retryable(false)
}
