//! What is done at the remote: fetching, sending, and the login.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::Instant,
};

use git2::{
    ConfigLevel, Cred, CredentialType, Direction, ErrorCode, FetchOptions, ObjectType, Odb, Oid,
    ProxyOptions, PushOptions, RemoteCallbacks, RemoteConnection, Repository, Sort,
};
use tokio::runtime::Handle;

use super::{
    GitConfig,
    errand::{Errand, Line, Sent, Task},
    failure::{failed, foreign},
    ledger::{base, target},
    marker::Marker,
    options::local_path,
    packs::Packs,
    place::{OURS, is_checked_out},
};
use crate::{Error, ErrorKind, Result};

/// From so many files on, what is sent is one pack.
const PACKED: usize = 100;

/// How much is kept of what the remote says, in characters.
const MAX_SAID: usize = 1000;

/// The thread's own side.
pub(super) struct Route {
    pub(super) repository: Repository,
    pub(super) remote: String,
    pub(super) fetching: Arc<Marker>,
    pub(super) packs: Packs,
    pub(super) config: GitConfig,
    pub(super) runtime: Handle,
    /// Why there was no login.
    pub(super) untold: RefCell<Option<Error>>,
    pub(super) line: Arc<Line>,
}

impl Route {
    pub(super) fn run(mut self, errands: &Receiver<Errand>) {
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
