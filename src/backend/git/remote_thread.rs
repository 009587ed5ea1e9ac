//! The thread for the remote: fetches, pushes and logins.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::Instant,
};

use git2::{
    ConfigLevel, Cred, CredentialType, Direction, ErrorCode, FetchOptions, ObjectType, Odb, Oid,
    ProxyOptions, PushOptions, RemoteCallbacks, RemoteConnection, Repository,
};
use tokio::runtime::Handle;

use super::{
    GitOptions,
    branch::{Branch, pack, walk},
    error::{code_of, failed, foreign, unread},
    marker::Marker,
    options::local_path,
    packs::Packs,
    repository::{OWN_DIRECTORY, is_checked_out},
    request::{Sent, Status},
};
use crate::{Error, ErrorKind, Result};

/// From this number of changed files on, commits are sent as one pack.
const PACK_FROM: usize = 100;

/// Characters kept of the remote's messages.
const MAX_MESSAGE: usize = 1000;

const UNUSABLE: &str = "the remote can't be reached, or refuses the request";

/// The values with which a thread is started.
pub(super) struct Setup {
    pub(super) path: PathBuf,
    pub(super) fetching: Arc<Marker>,
    pub(super) remote: String,
    pub(super) options: GitOptions,
    /// The application's: the function for the token runs on it.
    pub(super) runtime: Handle,
}

/// Some work for the thread.
pub(super) struct Request {
    pub(super) asked: Instant,
    /// Set once: by the thread when it begins to send, or by the caller when it stops waiting.
    pub(super) begun: Arc<AtomicBool>,
    pub(super) work: Box<dyn FnOnce(&mut RemoteThread) + Send>,
}

/// The thread's side.
pub(super) struct RemoteThread {
    branch: Branch,
    packs: Packs,
    setup: Arc<Setup>,
    /// Why the remote can't be used, if libgit2 can't carry this error.
    cause: RefCell<Option<Error>>,
    pub(super) status: Arc<Status>,
    /// [`Request::begun`] of the current request.
    begun: Arc<AtomicBool>,
}

impl RemoteThread {
    pub(super) fn new(repository: Repository, setup: Arc<Setup>, status: Arc<Status>) -> Self {
        let packs = Packs::new(repository.path());
        let branch = Branch::new(repository, &setup.path, &setup.options);
        Self { branch, packs, setup, cause: RefCell::default(), status, begun: Arc::default() }
    }

    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        let mut free = Instant::now();
        while let Ok(Request { asked, begun, work }) = requests.recv() {
            // The caller has stopped waiting.
            if begun.load(Ordering::Acquire) {
                continue;
            }
            // The time in the queue does not count as silence of the remote.
            if !self.status.set_waiting(Some(asked.max(free))) {
                return;
            }
            self.begun = begun;
            work(&mut self);
            free = Instant::now();
        }
    }

    /// Whether the request is still wanted. After this it can no longer be withdrawn.
    fn claim(&self) -> bool {
        !self.status.lock().is_abandoned && !self.begun.swap(true, Ordering::AcqRel)
    }

    /// Records what the remote has, unless the thread was abandoned.
    fn track(&self, commit: Oid) -> Result<()> {
        let state = self.status.lock();
        if state.is_abandoned {
            return Ok(());
        }
        self.branch
            .repository
            .reference(&self.branch.tracking, commit, true, "gateway-storage: remote")
            .map(drop)
            .map_err(|error| failed("the state of the remote can't be saved", error))
    }

    pub(super) fn fetch(&mut self) -> Result<Option<Oid>> {
        let _fetching = self.setup.fetching.begin()?;
        let tip = self.download().map_err(|error| self.remote_error(error))?;
        self.packs.sync()?;
        if !self.keeps_history(tip)? {
            return Err(tip.map_or_else(no_branch, |_| rewritten()));
        }
        tip.map_or(Ok(()), |tip| self.track(tip))?;
        Ok(tip)
    }

    fn download(&self) -> Result<Option<Oid>, git2::Error> {
        let mut remote = self.branch.repository.remote_anonymous(&self.setup.remote)?;
        let reference = &self.branch.reference;
        let mut connection = remote.connect_auth(Direction::Fetch, Some(self.callbacks()), Some(proxy()))?;
        let Some(tip) = tip_of(&connection, reference)? else { return Ok(None) };
        if self.branch.repository.refname_to_id(&self.branch.tracking).ok() != Some(tip) {
            let mut callbacks = self.callbacks();
            callbacks.transfer_progress(|_| self.status.set_waiting(Some(Instant::now())));
            let mut options = FetchOptions::new();
            options.remote_callbacks(callbacks).proxy_options(proxy()).update_fetchhead(false);
            connection.remote().download(&[reference], Some(&mut options))?;
        }
        Ok(Some(tip))
    }

    /// Whether the remote still has the history that it once shared with the branch here. What it lost was
    /// removed there and would come back with our commits. Histories without a common commit are not joined
    /// either.
    fn keeps_history(&self, tip: Option<Oid>) -> Result<bool> {
        let Some(here) = self.branch.head()? else { return Ok(true) };
        if tip.is_some() && self.branch.base(Some(here), tip)?.is_none() {
            return Ok(false);
        }
        let is_kept = || {
            let lost = self.missing_commits(tip, &self.known_commits()?)?;
            Ok(lost.is_empty() || self.missing_commits(tip, &[here])?.is_disjoint(&lost))
        };
        is_kept().map_err(unread)
    }

    /// Sends a commit and its ancestors if the remote's branch is at `expected`.
    pub(super) fn push(&self, commit: Oid, expected: Option<Oid>) -> Result<Sent> {
        // A fetch reports the cause, or that the remote has moved on.
        if !self.keeps_history(expected)? {
            return Ok(Sent::Rejected(None));
        }
        let sent = match local_path(&self.setup.remote) {
            Some(path) => self.push_local(&path, commit, expected),
            None => self.push_network(commit, expected),
        };
        let sent = sent.map_err(|error| self.remote_error(error))?;
        if sent == Sent::Accepted {
            self.track(commit)?;
        }
        Ok(sent)
    }

    /// Pushes to a repository on this machine. libgit2's own local push moves the branch even if it has
    /// changed meanwhile.
    fn push_local(&self, path: &Path, commit: Oid, expected: Option<Oid>) -> Result<Sent, git2::Error> {
        let (there, here, reference) =
            (Repository::open(path)?, &self.branch.repository, &self.branch.reference);
        there.config()?.add_file(&here.path().join(OWN_DIRECTORY).join("config"), ConfigLevel::App, true)?;
        if !there.is_bare() && is_checked_out(&there, reference) {
            return Err(self.caused_by(denied(
                "the remote is not bare and has this branch checked out: its work tree would not follow",
            )));
        }
        let is_on_top =
            expected.is_none_or(|expected| here.graph_descendant_of(commit, expected).unwrap_or(false));
        if !is_on_top || there.refname_to_id(reference).ok() != expected {
            return Ok(Sent::Rejected(None));
        }
        let changes = self.branch.changes(expected, Some(commit)).map_err(|error| self.caused_by(error))?;
        if changes.len() < PACK_FROM {
            let store = there.odb()?;
            walk(here, expected, commit)?.try_for_each(|commit| copy(here, &store, commit?))?;
        } else {
            pack(here, &there, expected, commit)?;
        }
        let before = expected.unwrap_or(Oid::ZERO_SHA1);
        if !self.claim() {
            return Ok(Sent::Rejected(None));
        }
        match there.reference_matching(reference, commit, true, before, "push") {
            Ok(_) => Ok(Sent::Accepted),
            Err(error) if error.code() == ErrorCode::Modified => Ok(Sent::Rejected(None)),
            Err(error) if error.code() == ErrorCode::Locked => Ok(Sent::Locked),
            Err(error) => Err(error),
        }
    }

    /// Pushes over a network. The server moves the branch only if it is where we saw it.
    fn push_network(&self, commit: Oid, expected: Option<Oid>) -> Result<Sent, git2::Error> {
        let (is_refused, message) = (Cell::new(false), RefCell::new(Vec::new()));
        let say = |words: &[u8]| {
            let mut message = message.borrow_mut();
            // A character has at most four bytes.
            let room = (4 * MAX_MESSAGE).saturating_sub(message.len());
            message.extend_from_slice(&words[..words.len().min(room)]);
        };
        let mut remote = self.branch.repository.remote_anonymous(&self.setup.remote)?;
        let reference = &self.branch.reference;
        let mut connection = remote.connect_auth(Direction::Push, Some(self.callbacks()), Some(proxy()))?;
        if tip_of(&connection, reference)? != expected || !self.claim() {
            return Ok(Sent::Rejected(None));
        }
        let mut callbacks = self.callbacks();
        callbacks.push_transfer_progress(|_, _, _| {
            self.status.set_waiting(Some(Instant::now()));
        });
        callbacks.sideband_progress(|words| {
            say(words);
            true
        });
        callbacks.push_update_reference(|_, status| {
            if let Some(status) = status {
                is_refused.set(true);
                say(b" ");
                say(status.as_bytes());
            }
            Ok(())
        });
        let mut options = PushOptions::new();
        options.remote_callbacks(callbacks).proxy_options(proxy()).packbuilder_parallelism(1);
        match connection.remote().push(&[format!("{commit}:{reference}")], Some(&mut options)) {
            Ok(()) if is_refused.get() => Ok(Sent::Rejected(Some(readable(&message.borrow())))),
            Ok(()) => Ok(Sent::Accepted),
            Err(error) if error.code() == ErrorCode::NotFastForward => Ok(Sent::Rejected(None)),
            Err(error) => Err(error),
        }
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        let mut logins = 0;
        callbacks.credentials(move |url, user, allowed| {
            logins += 1;
            // libgit2 asks again without end if the remote refuses a login.
            if logins > 3 {
                return Err(self.caused_by(denied("the remote refuses the login")));
            }
            self.login(url, user, allowed)
        });
        callbacks
    }

    /// The login for the remote.
    fn login(&self, url: &str, user: Option<&str>, allowed: CredentialType) -> Result<Cred, git2::Error> {
        let options = &self.setup.options;
        let user = options.username.as_deref().or(user).unwrap_or("git");
        if allowed.contains(CredentialType::USERNAME) {
            return Cred::username(user);
        }
        if allowed.contains(CredentialType::SSH_KEY) {
            return match &options.ssh_key {
                Some(key) => Cred::ssh_key(user, None, key, None),
                None => Cred::ssh_key_from_agent(user),
            };
        }
        // Never over a connection that others can read.
        let token = if !url.starts_with("https://") {
            Err(denied("the remote requires a login, and a token is sent over `https` only"))
        } else if let Some(token) = &options.token {
            // Read for each connection, because it may have been renewed.
            self.setup.runtime.block_on(token.reveal())
        } else {
            Err(denied("the remote requires a login: name its token with `token_env` or `token_file`"))
        };
        Cred::userpass_plaintext(user, &token.map_err(|error| self.caused_by(error))?)
    }

    /// Keeps why the remote can't be used, because libgit2 can't carry it.
    #[cold]
    fn caused_by(&self, why: Error) -> git2::Error {
        self.cause.replace(Some(why));
        git2::Error::new(ErrorCode::Auth, git2::ErrorClass::Callback, "")
    }

    /// Why the remote can't be used.
    #[cold]
    fn remote_error(&self, error: git2::Error) -> Error {
        if let Some(error) = self.cause.take() {
            return error;
        }
        // A fetch from a directory does not report why it can't be opened.
        if let Some(path) = local_path(&self.setup.remote)
            && let Err(why) = Repository::open(&path)
            && why.code() == ErrorCode::Owner
        {
            return foreign(&path, &why);
        }
        let (kind, message) = match error.code() {
            ErrorCode::Certificate => {
                (ErrorKind::Denied, "this machine does not trust the remote's certificate or host key")
            }
            ErrorCode::Auth | ErrorCode::Owner => (ErrorKind::Denied, UNUSABLE),
            _ => (ErrorKind::Unavailable, UNUSABLE),
        };
        Error::new(kind, message).with_code(code_of(&error))
    }

    /// The commits that a remote is known to have had on this branch: from this store, from git's own remotes
    /// and their reflogs, and from git's last fetch.
    fn known_commits(&self) -> Result<Vec<Oid>, git2::Error> {
        let (repository, branch) = (&self.branch.repository, &self.setup.options.branch);
        let text = |name: &str| {
            let text = fs::read(repository.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        };
        let mut known = Vec::new();
        for reference in repository.references_glob("refs/remotes/*")? {
            let reference = reference?;
            let Some(name) = reference.name().ok().filter(|name| name.ends_with(&format!("/{branch}")))
            else {
                continue;
            };
            known.push(reference.peel_to_commit()?.id());
            // Its earlier positions. The store's own tracking reference never goes back.
            if name != self.branch.tracking {
                let moves = text(&format!("logs/{name}"));
                let ids = moves.lines().flat_map(|line| line.split(' ').take(2));
                known.extend(ids.filter_map(|id| Oid::from_str(id).ok()));
            }
        }
        // A line has an id, `not-for-merge` or nothing, and the source, separated by tabs.
        for line in text("FETCH_HEAD").lines() {
            let mut parts = line.split('\t');
            let (id, merged, from) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
            let is_other = from.starts_with("branch '") && !from.starts_with(&format!("branch '{branch}' "));
            if merged == Some("") && !is_other && !from.starts_with("tag '") {
                known.extend(id.and_then(|id| Oid::from_str(id).ok()));
            }
        }
        // Commits that `git gc` removed are not on the branch here either.
        known.retain(|id| repository.find_commit(*id).is_ok());
        Ok(known)
    }

    /// The commits of some histories that another history does not have.
    fn missing_commits(&self, tip: Option<Oid>, of: &[Oid]) -> Result<HashSet<Oid>, git2::Error> {
        let mut walk = self.branch.repository.revwalk()?;
        of.iter().try_for_each(|id| walk.push(*id))?;
        tip.map_or(Ok(()), |tip| walk.hide(tip))?;
        walk.collect()
    }
}

/// The proxy of the repository's settings, or of the environment.
fn proxy() -> ProxyOptions<'static> {
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    proxy
}

/// A remote's message as one line without control characters.
fn readable(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message).replace(char::is_control, " ");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(MAX_MESSAGE).collect()
}

/// The newest commit of the remote's branch.
fn tip_of(connection: &RemoteConnection<'_, '_, '_>, reference: &str) -> Result<Option<Oid>, git2::Error> {
    Ok(connection.list()?.iter().find(|head| head.name() == reference).map(git2::RemoteHead::oid))
}

/// Copies a commit and its files. Its parents exist already.
fn copy(from: &Repository, to: &Odb<'_>, commit: Oid) -> Result<(), git2::Error> {
    copy_tree(from, to, from.find_commit(commit)?.tree_id())?;
    copy_object(from, to, commit)
}

/// Copies a tree. The tree itself comes last, so that an existing tree is complete.
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
fn denied(message: &'static str) -> Error {
    Error::new(ErrorKind::Denied, message)
}

#[cold]
fn no_branch() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the remote does not have the branch, or has lost it: create it with `git push REMOTE BRANCH`",
    )
    .with_retryable(false)
}

#[cold]
fn rewritten() -> Error {
    Error::new(
        ErrorKind::Conflict,
"the remote's history was rewritten, or is unrelated: bring this clone to it with git; a push would restore what was removed",
    )
    .with_retryable(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    /// The thread's side in a new repository, for a remote over https that accepts this token.
    fn remote_thread(path: &Path, runtime: &tokio::runtime::Runtime, token: Option<Secret>) -> RemoteThread {
        let mut options = GitOptions::new(path);
        options.token = token;
        let setup = Setup {
            path: path.to_owned(),
            fetching: Marker::new(path.join("fetching")),
            remote: "https://git.example/x.git".to_owned(),
            options,
            runtime: runtime.handle().clone(),
        };
        RemoteThread::new(Repository::init(path).unwrap(), Arc::new(setup), Arc::default())
    }

    #[test]
    fn a_token_is_read_for_each_connection_and_sent_over_tls_only() {
        const HTTPS: &str = "https://git.example/x.git";
        let directory = tempfile::tempdir().unwrap();
        // As in the command: a single-threaded runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = calls.clone();
        let token = Secret::call(move || {
            let call = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                // The function may wait for another task.
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                if call < 2 { Ok("ghp_secret".to_owned()) } else { Err(std::io::Error::other("no role")) }
            }
        });
        let remote_thread = remote_thread(directory.path(), &runtime, Some(token));
        let kind = CredentialType::USER_PASS_PLAINTEXT;
        for called in [1, 2] {
            let shown = remote_thread.login(HTTPS, None, kind).unwrap();
            assert_eq!((shown.credtype(), calls.load(Ordering::SeqCst)), (kind.bits(), called));
        }
        for open in ["http://git.example/x.git", "git://git.example/x.git"] {
            let error =
                remote_thread.remote_error(remote_thread.login(open, None, kind).map(drop).unwrap_err());
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.to_string().ends_with("a token is sent over `https` only"), "{error}");
            assert_eq!(calls.load(Ordering::SeqCst), 2, "the function is not called");
        }
        let refused = remote_thread.login(HTTPS, None, kind).map(drop).unwrap_err();
        let error = remote_thread.remote_error(refused);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.to_string(), "the function that supplies the secret failed");
        // Reported once.
        let other = git2::Error::new(ErrorCode::Auth, git2::ErrorClass::Http, "");
        let error = remote_thread.remote_error(other);
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().starts_with("the remote can't be reached"), "{error}");
    }

    #[test]
    fn a_token_from_a_file_is_read_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let file = directory.path().join("token");
        let remote_thread = remote_thread(&directory.path().join("x"), &runtime, Some(Secret::file(&file)));
        let login =
            || remote_thread.login("https://git.example/x", None, CredentialType::USER_PASS_PLAINTEXT);
        let error = remote_thread.remote_error(login().map(drop).unwrap_err());
        assert!(error.to_string().ends_with("token can't be read"), "{error}");
        fs::write(&file, "ghp_secret\n").unwrap();
        assert!(login().is_ok());
        drop(runtime);
        // Without the application's runtime there is no token, and no panic.
        let error = remote_thread.remote_error(login().map(drop).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }

    #[test]
    fn a_message_of_the_remote_is_one_short_line() {
        assert_eq!(readable("a\u{1b}[31m b\r\n\n\u{9b}c\t".as_bytes()), "a [31m b c");
        assert_eq!(readable(b"\xffx"), "\u{fffd}x");
        assert_eq!(readable("\u{e9}".repeat(3000).as_bytes()).chars().count(), MAX_MESSAGE);
    }
}
