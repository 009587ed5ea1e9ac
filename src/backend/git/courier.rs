//! The remote: one thread that speaks to it, so that nobody waits for a network that is silent.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use git2::{
    ConfigLevel, Cred, CredentialType, Direction, ErrorCode, FetchOptions, ObjectType, Odb, Oid,
    ProxyOptions, PushOptions, RemoteCallbacks, RemoteConnection, Repository, Sort,
};

use tokio::runtime::Handle;

use super::{
    GitConfig,
    failure::{failed, foreign},
    ledger::{base, target},
    marker::Marker,
    options::local_path,
    packs::Packs,
    place::{OURS, Place, is_checked_out},
};
use crate::{Error, ErrorKind, Outcome, Result, backend::local::Ticket};

/// From so many files on, what is sent is one pack.
const PACKED: usize = 100;

/// How many threads that hang are left as soon as they are late. Each one more makes the next wait twice as long.
const LEFT_AT_ONCE: usize = 8;

/// How often that wait is doubled at most.
const DOUBLED: usize = 7;

/// How often it is looked, while the remote is waited for, whether the last handle of the store is gone.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// How much is kept of what the remote says, in characters.
const MAX_SAID: usize = 1000;

/// What became of commits that were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Accepted,
    /// The remote has others, or does not want these: then in its own words, if it has any.
    Rejected(Option<String>),
    /// Somebody else is sending at this moment.
    Busy,
}

struct Errand {
    asked: Instant,
    /// Set by who comes first: the thread when it begins to send, or the caller when it waits no more.
    begun: Arc<AtomicBool>,
    task: Task,
}

enum Task {
    Fetch(Sender<Result<Option<Oid>>>),
    Push { commit: Oid, expected: Option<Oid>, reply: Sender<Result<Sent>> },
}

/// An answer that is on its way. What is dropped before it is sent is not sent any more.
pub(super) struct Answer<T> {
    reply: Receiver<Result<T>>,
    ticket: Ticket,
    asked: Instant,
    patience: Duration,
    is_left: Arc<AtomicBool>,
}

impl<T> Answer<T> {
    /// The answer, if it is there, or is late.
    pub(super) fn now(&self) -> Option<Result<T>> {
        let answer = match self.reply.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) if self.asked.elapsed() < self.patience => return None,
            Err(TryRecvError::Empty) => Err(silent()),
            Err(TryRecvError::Disconnected) => Err(died()),
        };
        Some(self.judged(answer))
    }

    fn wait(self) -> Result<T> {
        let answer = loop {
            match self.reply.recv_timeout(LOOK_AFTER.min(self.patience)) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Disconnected) => break Err(died()),
                Err(RecvTimeoutError::Timeout) => {
                    // The drop of the last handle waits for this thread.
                    if self.asked.elapsed() >= self.patience || self.is_left.load(Ordering::Acquire) {
                        break Err(silent());
                    }
                }
            }
        };
        self.judged(answer)
    }

    /// An error's outcome says whether commits may have gone out, or may still.
    fn judged(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|error| match self.ticket.take() {
            true => error,
            false => error.with_outcome(Outcome::Unknown),
        })
    }
}

/// The handle of the thread. It is not waited for when it is dropped.
///
/// A network that is silent can hold the thread for ever. Then it is left, and another one is started.
pub(super) struct Courier {
    post: Post,
    /// Whether the last handle of the store is gone.
    is_left: Arc<AtomicBool>,
    thread: Thread,
    /// Those that were left, and hang still.
    left: Vec<JoinHandle<()>>,
}

/// What a thread is started with.
struct Post {
    path: PathBuf,
    git: PathBuf,
    fetching: Arc<Marker>,
    remote: String,
    config: GitConfig,
    runtime: Handle,
}

struct Thread {
    errands: Sender<Errand>,
    line: Arc<Line>,
    handle: JoinHandle<()>,
}

impl Post {
    fn start(&self) -> Result<Thread> {
        let (errands, waiting) = channel();
        let line = Arc::<Line>::default();
        let route = Route {
            repository: Place::reopen(&self.path)?,
            remote: self.remote.clone(),
            fetching: self.fetching.clone(),
            packs: Packs::new(&self.git),
            config: self.config.clone(),
            runtime: self.runtime.clone(),
            untold: RefCell::default(),
            line: line.clone(),
        };
        let handle = thread::Builder::new()
            .name("gateway-storage-git-remote".into())
            .spawn(move || route.run(&waiting))
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the thread for the remote can't be started")
                    .with_source(error)
            })?;
        Ok(Thread { errands, line, handle })
    }
}

impl Courier {
    /// The application's runtime is where its function runs that gives the token.
    pub(super) fn start(
        place: &Place,
        config: &GitConfig,
        remote: String,
        runtime: Handle,
        is_left: Arc<AtomicBool>,
    ) -> Result<Self> {
        let post = Post {
            path: place.path.clone(),
            git: place.git.clone(),
            fetching: place.fetching.clone(),
            remote,
            config: config.clone(),
            runtime,
        };
        Ok(Self { thread: post.start()?, post, is_left, left: Vec::new() })
    }

    /// Fetches the remote's branch, and gives its newest commit, if it has one.
    pub(super) fn fetch(&mut self) -> Result<Option<Oid>> {
        self.fetching().wait()
    }

    /// Sends a commit and what it stands on, if the remote's branch is where it is expected to be. The outcome of an error is
    /// Unknown if the remote may have it, or may still get it.
    pub(super) fn push(&mut self, commit: Oid, expected: Option<Oid>) -> Result<Sent> {
        self.pushing(commit, expected).wait()
    }

    pub(super) fn fetching(&mut self) -> Answer<Option<Oid>> {
        self.ask(Task::Fetch)
    }

    pub(super) fn pushing(&mut self, commit: Oid, expected: Option<Oid>) -> Answer<Sent> {
        self.ask(|reply| Task::Push { commit, expected, reply })
    }

    fn ask<T>(&mut self, task: impl FnOnce(Sender<Result<T>>) -> Task) -> Answer<T> {
        let (reply, answer) = channel();
        let (ticket, asked) = (Ticket::default(), Instant::now());
        match self.listens() {
            // If the thread is gone, so is the answer.
            Ok(()) => {
                drop(self.thread.errands.send(Errand { asked, begun: ticket.begun(), task: task(reply) }))
            }
            Err(error) => drop(reply.send(Err(error))),
        }
        let (patience, is_left) = (self.post.config.remote_timeout, self.is_left.clone());
        Answer { reply: answer, ticket, asked, patience, is_left }
    }

    /// Sees to it that there is a thread that listens. Nothing is queued behind one that is late, so the queue stays short.
    fn listens(&mut self) -> Result<()> {
        self.left.retain(|thread| !thread.is_finished());
        let (patience, silence) = (self.post.config.remote_timeout, self.thread.line.silence());
        if !self.thread.handle.is_finished() {
            if silence < patience {
                return Ok(());
            }
            // A remote that takes connections and never answers must not cost a thread each time.
            let doubled = self.left.len().saturating_sub(LEFT_AT_ONCE).min(DOUBLED);
            if silence < patience.saturating_mul(1 << doubled) {
                return Err(silent());
            }
        }
        let old = std::mem::replace(&mut self.thread, self.post.start()?);
        old.line.leave();
        self.left.push(old.handle);
        Ok(())
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.thread.line.leave();
    }
}

/// What both sides know of a thread.
#[derive(Default)]
struct Line(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// Since when the remote owes it a word. None: it has nothing to do.
    silent_since: Option<Instant>,
    /// Nobody listens to it any more: it may neither send nor note anything.
    is_left: bool,
}

impl Line {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        // Each change of it is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the remote has owed the thread a word.
    fn silence(&self) -> Duration {
        self.heard().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn leave(&self) {
        self.heard().is_left = true;
    }

    /// Whether the thread is still wanted. Notes since when it waits.
    fn waits(&self, since: Option<Instant>) -> bool {
        let mut heard = self.heard();
        heard.silent_since = since;
        !heard.is_left
    }
}

/// The thread's own side.
struct Route {
    repository: Repository,
    remote: String,
    fetching: Arc<Marker>,
    packs: Packs,
    config: GitConfig,
    runtime: Handle,
    /// Why there was no login.
    untold: RefCell<Option<Error>>,
    line: Arc<Line>,
}

impl Route {
    fn run(mut self, errands: &Receiver<Errand>) {
        let mut free = Instant::now();
        while let Ok(Errand { asked, begun, task }) = errands.recv() {
            // Its caller is gone.
            if begun.load(Ordering::Acquire) {
                continue;
            }
            // It did not wait for the remote while it waited for its turn.
            if !self.line.waits(Some(asked.max(free))) {
                return;
            }
            match task {
                Task::Fetch(reply) => {
                    let fetched = self.fetch();
                    self.line.waits(None);
                    drop(reply.send(fetched));
                }
                Task::Push { commit, expected, reply } => {
                    let sent = match (self.is_kept(expected), local_path(&self.remote)) {
                        (Err(error), _) => Err(unread(error)),
                        // Fetching says what is wrong, or that the remote has moved on.
                        (Ok(false), _) => Ok(Sent::Rejected(None)),
                        (Ok(true), Some(path)) => self.push_here(&path, commit, expected, &begun),
                        (Ok(true), None) => self.push_there(commit, expected, &begun),
                    };
                    let known = match sent {
                        Ok(Sent::Accepted) => self.track(commit),
                        _ => Ok(()),
                    };
                    self.line.waits(None);
                    drop(reply.send(known.and(sent)));
                }
            }
            free = Instant::now();
        }
    }

    /// Whether somebody still wants this to be sent. From here on it can't be taken back.
    fn may_send(&self, begun: &AtomicBool) -> bool {
        !self.line.heard().is_left && !begun.swap(true, Ordering::AcqRel)
    }

    /// Notes what the remote has, unless another thread does that by now.
    fn track(&self, commit: Oid) -> Result<()> {
        let heard = self.line.heard();
        if heard.is_left {
            return Ok(());
        }
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
            let mut connection =
                remote.connect_auth(Direction::Fetch, Some(self.callbacks()), Some(proxy()))?;
            let Some(tip) = tip_of(&connection, &reference)? else { return Ok(None) };
            if self.repository.refname_to_id(&self.config.tracking()).ok() != Some(tip) {
                let mut callbacks = self.callbacks();
                callbacks.transfer_progress(|_| self.line.waits(Some(Instant::now())));
                let mut options = FetchOptions::new();
                options.remote_callbacks(callbacks).proxy_options(proxy()).update_fetchhead(false);
                connection.remote().download(&[&reference], Some(&mut options))?;
            }
            Ok(Some(tip))
        };
        let tip = fetch().map_err(|error| self.unreached(error))?;
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
    fn push_here(&self, path: &Path, commit: Oid, expected: Option<Oid>, begun: &AtomicBool) -> Result<Sent> {
        let there = Repository::open(path).map_err(|error| self.unreached(error))?;
        let mut settings = there.config().map_err(|error| self.unreached(error))?;
        let ours = self.repository.path().join(OURS).join("config");
        settings.add_file(&ours, ConfigLevel::App, true).map_err(|error| self.unreached(error))?;
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
                return Ok(Sent::Rejected(None));
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
            if !self.may_send(begun) {
                return Ok(Sent::Rejected(None));
            }
            match there.reference_matching(&reference, commit, true, before, "push") {
                Ok(_) => Ok(Sent::Accepted),
                Err(error) if error.code() == ErrorCode::Modified => Ok(Sent::Rejected(None)),
                Err(error) if error.code() == ErrorCode::Locked => Ok(Sent::Busy),
                Err(error) => Err(error),
            }
        };
        push().map_err(|error| self.unreached(error))
    }

    /// Over a network. The server moves the branch only if it still is where we saw it.
    fn push_there(&self, commit: Oid, expected: Option<Oid>, begun: &AtomicBool) -> Result<Sent> {
        let (moved, refused) = (Cell::new(false), Cell::new(false));
        let said = RefCell::new(Vec::new());
        let say = |words: &[u8]| {
            let mut said = said.borrow_mut();
            // A character is four bytes at most.
            let room = (4 * MAX_SAID).saturating_sub(said.len());
            said.extend_from_slice(&words[..words.len().min(room)]);
        };
        let push = || {
            let mut remote = self.repository.remote_anonymous(&self.remote)?;
            let reference = self.config.reference();
            let mut connection =
                remote.connect_auth(Direction::Push, Some(self.callbacks()), Some(proxy()))?;
            if tip_of(&connection, &reference)? != expected || !self.may_send(begun) {
                moved.set(true);
                return Ok(());
            }
            let mut callbacks = self.callbacks();
            callbacks.push_transfer_progress(|_, _, _| {
                self.line.waits(Some(Instant::now()));
            });
            callbacks.sideband_progress(|words| {
                say(words);
                true
            });
            callbacks.push_update_reference(|_, status| {
                if let Some(status) = status {
                    refused.set(true);
                    say(b" ");
                    say(status.as_bytes());
                }
                Ok(())
            });
            let mut options = PushOptions::new();
            options.remote_callbacks(callbacks).proxy_options(proxy()).packbuilder_parallelism(1);
            connection.remote().push(&[format!("{commit}:{reference}")], Some(&mut options))
        };
        match push() {
            Ok(()) if refused.get() => Ok(Sent::Rejected(Some(readable(&said.borrow())))),
            Ok(()) if moved.get() => Ok(Sent::Rejected(None)),
            Ok(()) => Ok(Sent::Accepted),
            Err(error) if error.code() == ErrorCode::NotFastForward => Ok(Sent::Rejected(None)),
            Err(error) => Err(self.unreached(error)),
        }
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        let mut asked = 0;
        callbacks.credentials(move |url, user, allowed| {
            asked += 1;
            // A remote that refuses a credential asks again, without end.
            if asked > 3 {
                return Err(self.no_login(denied("the remote refuses the login that it is shown")));
            }
            self.login(url, user, allowed)
        });
        callbacks
    }

    /// What the remote is shown.
    fn login(&self, url: &str, user: Option<&str>, allowed: CredentialType) -> Result<Cred, git2::Error> {
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
        // Never over a line that others can read.
        if !url.starts_with("https://") {
            return Err(self.no_login(denied("the remote wants a login, and a token goes over `https` only")));
        }
        let Some(token) = &self.config.token else {
            return Err(self.no_login(denied(
                "the remote wants a login: `token_env` or `token_file` says where the token is",
            )));
        };
        // As it is now: it may have been renewed.
        match self.runtime.block_on(token.reveal()) {
            Ok(token) => Cred::userpass_plaintext(user, &token),
            Err(error) => Err(self.no_login(error)),
        }
    }

    /// Keeps why there is no login, which libgit2 can't be told.
    #[cold]
    fn no_login(&self, why: Error) -> git2::Error {
        self.untold.replace(Some(why));
        git2::Error::new(ErrorCode::Auth, git2::ErrorClass::Callback, "no login")
    }

    /// Why the remote can't be used.
    #[cold]
    fn unreached(&self, error: git2::Error) -> Error {
        if let Some(error) = self.untold.take() {
            return error;
        }
        // Fetching from a directory does not say why it can't be opened.
        if let Some(path) = local_path(&self.remote)
            && let Err(why) = Repository::open(&path)
            && why.code() == ErrorCode::Owner
        {
            return foreign(&path, &why);
        }
        if error.code() == ErrorCode::Certificate {
            let message = "the remote's certificate, or its host's key, is not one that this machine trusts";
            return failed(message, error);
        }
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
}

/// That of the repository's settings, or of the environment.
fn proxy() -> ProxyOptions<'static> {
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    proxy
}

/// A remote's own words, as one line that can't steer a terminal.
fn readable(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said).replace(char::is_control, " ");
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(MAX_SAID).collect()
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
fn silent() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the remote did not answer in time: `remote_timeout` is how long it may take",
    )
}

#[cold]
fn died() -> Error {
    Error::new(ErrorKind::Internal, "the thread that speaks to the remote is gone")
}

#[cold]
fn denied(message: &'static str) -> Error {
    Error::new(ErrorKind::Denied, message)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    /// The thread's side in a new repository, for a remote over https that takes this token.
    fn route(path: &Path, runtime: &tokio::runtime::Runtime, token: Option<Secret>) -> Route {
        let mut config = GitConfig::new(path);
        config.token = token;
        Route {
            repository: Repository::init(path).unwrap(),
            remote: "https://git.example/x.git".to_owned(),
            fetching: Marker::new(path.join("fetching")),
            packs: Packs::new(path),
            config,
            runtime: runtime.handle().clone(),
            untold: RefCell::default(),
            line: Arc::default(),
        }
    }

    #[test]
    fn a_token_is_asked_for_each_time_and_goes_over_tls_only() {
        const HTTPS: &str = "https://git.example/x.git";
        let folder = tempfile::tempdir().unwrap();
        // As the command's: it runs no task of others while nothing waits in it.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = calls.clone();
        let token = Secret::call(move || {
            let call = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                // It may wait for another task.
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                if call < 2 { Ok("ghp_secret".to_owned()) } else { Err(std::io::Error::other("no role")) }
            }
        });
        let route = route(folder.path(), &runtime, Some(token));
        let kind = CredentialType::USER_PASS_PLAINTEXT;
        for called in [1, 2] {
            let shown = route.login(HTTPS, None, kind).unwrap();
            assert_eq!((shown.credtype(), calls.load(Ordering::SeqCst)), (kind.bits(), called));
        }
        for open in ["http://git.example/x.git", "git://git.example/x.git"] {
            let error = route.unreached(route.login(open, None, kind).map(drop).unwrap_err());
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.to_string().ends_with("a token goes over `https` only"), "{error}");
            assert_eq!(calls.load(Ordering::SeqCst), 2, "it is not even asked for");
        }
        let refused = route.login(HTTPS, None, kind).map(drop).unwrap_err();
        let error = route.unreached(refused);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.to_string(), "the function that is asked for a secret failed");
        // It is told once.
        let other = git2::Error::new(ErrorCode::Auth, git2::ErrorClass::Http, "");
        let error = route.unreached(other);
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().starts_with("the remote can't be reached"), "{error}");
    }

    #[test]
    fn a_token_from_a_file_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let file = folder.path().join("token");
        let route = route(&folder.path().join("x"), &runtime, Some(Secret::file(&file)));
        let login = || route.login("https://git.example/x", None, CredentialType::USER_PASS_PLAINTEXT);
        let error = route.unreached(login().map(drop).unwrap_err());
        assert!(error.to_string().ends_with("token can't be read"), "{error}");
        fs::write(&file, "ghp_secret\n").unwrap();
        assert!(login().is_ok());
        drop(runtime);
        // Without the application's runtime there is no token, and no panic.
        let error = route.unreached(login().map(drop).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }

    #[test]
    fn what_a_remote_says_is_one_short_line() {
        assert_eq!(readable("a\u{1b}[31m b\r\n\n\u{9b}c\t".as_bytes()), "a [31m b c");
        assert_eq!(readable(b"\xffx"), "\u{fffd}x");
        assert_eq!(readable("\u{e9}".repeat(3000).as_bytes()).chars().count(), MAX_SAID);
    }
}
