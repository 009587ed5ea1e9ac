//! `refresh_once`: of many callers and processes one spends a refresh token, and all get the new one.

use std::{borrow::Borrow, convert::Infallible, pin::pin, time::Duration};

use futures_util::future::{Either, pending, select};
use gateway_storage_macros::Setters;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tracing::{Instrument as _, field::Empty};

use super::flight::{End, Flight};
use crate::{
    Credential, Error, ErrorKind, IntoKey, Key, Outcome, Result, Storage,
    capability::{Conditional, Leases},
    history::DocumentKind,
    layer::{jittered, later, system_name},
    model::{Claim, Condition, Holder, Lease, Revision, check_rest, check_ttl, redacted},
};

/// The longest pause between two looks at a credential that another process refreshes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Of these looks, one claims the lease.
const LOOKS_PER_CLAIM: u32 = 4;

/// The first and the longest pause before storing a new token is tried again. Others may send the spent token
/// in such a pause, if the store was away for longer than the lease.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long [`Storage::close`] waits for new tokens to be stored: one minute.
pub const CLOSE_WAIT: Duration = Duration::from_secs(60);

/// How [`Storage::refresh_once`] refreshes. `Refresh::default()` suits OAuth.
///
/// ```
/// # use gateway_storage::refresh::Refresh;
/// let how = Refresh::default().with_wait(std::time::Duration::from_secs(10));
/// ```
#[derive(Clone, Debug, Setters)]
#[non_exhaustive]
pub struct Refresh {
    /// The time to live of the lease, which is renewed each third of it: 30 s. If the process dies, another
    /// one can refresh after this time. A process that is paused for longer can spend a token twice.
    pub lease: Duration,
    /// How long the provider's answer is awaited with the lease: 5 minutes. Then another process may refresh,
    /// while this one waits on.
    pub longest: Duration,
    /// How long a caller waits at most: 60 s. A refresh that has begun goes on without the caller.
    pub wait: Duration,
    /// The pause of all processes after a failed refresh, or one whose result is not fresh: 5 s.
    pub rest: Duration,
    /// The field of the credential with the token that a refresh spends: `refresh_token`. If the token is
    /// inside an object, the name of the object's field.
    pub token_field: String,
    /// The field that marks a credential whose token the provider rejected: `refresh_rejected`. It is set to
    /// a digest of that token, so a new token makes the mark void, and a refresh removes it. A credential
    /// with a valid mark is not refreshed.
    pub rejected_field: String,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            longest: Duration::from_secs(300),
            wait: Duration::from_secs(60),
            rest: Duration::from_secs(5),
            token_field: "refresh_token".into(),
            rejected_field: "refresh_rejected".into(),
        }
    }
}

/// A fresh credential, and where it comes from. As JSON the credential is [redacted](Credential::redacted).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refreshed {
    /// It was fresh.
    #[serde(serialize_with = "redacted")]
    Fresh(Credential),
    /// This call refreshed it.
    #[serde(serialize_with = "redacted")]
    Mine(Credential),
    /// Another call or process refreshed it while this one waited.
    #[serde(serialize_with = "redacted")]
    Theirs(Credential),
}

impl Refreshed {
    /// The credential.
    #[must_use]
    pub fn into_credential(self) -> Credential {
        let (Self::Fresh(credential) | Self::Mine(credential) | Self::Theirs(credential)) = self;
        credential
    }
}

/// Why the provider gave no new token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused<E> {
    /// The provider rejects the token itself: `invalid_grant` in [RFC 6749, section 5.2]. If the stored
    /// credential still has this token, it is marked.
    ///
    /// [RFC 6749, section 5.2]: https://www.rfc-editor.org/rfc/rfc6749#section-5.2
    Token(E),
    /// Any other reason, also that the answer was lost. The credential stays as it is.
    Other(E),
}

/// `?` makes an `E` an [`Other`](Refused::Other) one.
impl<E> From<E> for Refused<E> {
    fn from(error: E) -> Self {
        Self::Other(error)
    }
}

/// Why there is no fresh credential.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefreshError<E> {
    /// The store failed before the token was sent, or there is no such credential.
    #[error(transparent)]
    Store(#[from] Error),
    /// The provider gave no new token. All processes pause for [`Refresh::rest`].
    #[error("the provider gave no new token")]
    Provider(#[source] E),
    /// The provider rejected the token, and the credential is marked, or was before: then there is no error
    /// of the provider.
    #[error("the provider rejected the refresh token: sign in again")]
    Rejected(#[source] Option<E>),
    /// Another caller or process is refreshing the credential, or its refresh failed, and the pause is not
    /// over. A refresh that has begun goes on.
    #[error("another refresh of this credential is running, or failed a moment ago: try again later")]
    Busy,
    /// The function that refreshes panicked. The token may be spent.
    #[error("the refresh panicked")]
    Panicked,
    /// The provider gave a new token, which the store does not take, for a reason that does not pass: the
    /// credential was deleted, is too large or not valid now, or the store was closed. The old token is
    /// spent, so keep this credential elsewhere.
    #[error("the provider gave a new token, and the store did not take it")]
    NotStored {
        /// The credential with the new token.
        credential: Credential,
        /// Why it is not stored.
        #[source]
        error: Error,
    },
}

type Answer<E> = Result<Map<String, Value>, Refused<E>>;
type Refreshing<E> = Result<Refreshed, RefreshError<E>>;

/// One refresh per token. See [`Refresh`].
impl<B> Storage<B> {
    /// Returns a credential that is fresh, and refreshes it if needed: of all callers in all processes one
    /// calls the provider, and the others wait and get what it stored.
    ///
    /// `is_fresh` looks at a credential. `refresh` spends its token and returns the fields that change.
    /// These are merged into the credential as it is stored then, so no change of another writer is lost.
    /// `refresh` should end by itself: it needs a timeout for its request.
    ///
    /// # Promise
    ///
    /// A token is sent by one process at a time, as long as none is paused, or cut off from the store, for
    /// longer than its lease. Even then no stored state is wrong: a new token replaces only the one that was
    /// spent for it, and a credential is only marked as rejected if it still has the rejected token. The
    /// [module](crate::refresh) says what can't be promised, and why.
    ///
    /// # Errors
    ///
    /// See [`RefreshError`]. If the store does not take a write of the credential, the provider is not asked.
    ///
    /// # Cancellation
    ///
    /// The refresh runs in a task of its own. If the caller is dropped, it goes on, and its result is stored.
    /// [`close`](Storage::close) waits for that. A new token that the store does not take for now is stored
    /// once it does; if the process ends before, the token is lost.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime.
    ///
    /// ```
    /// # use gateway_storage::{Credential, Memory, Storage, refresh::{Refresh, RefreshError, Refused}};
    /// # use serde_json::{Map, json};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), RefreshError<std::io::Error>> {
    /// # async fn ask_provider(_: &str) -> std::io::Result<(String, String)> {
    /// #     Ok(("new".into(), "r2".into()))
    /// # }
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// storage.set_credential("a", json!({ "access_token": "old", "refresh_token": "r1" })).await?;
    ///
    /// let is_fresh = |credential: &Credential| credential.fields()["access_token"] != "old";
    /// let refresh = |credential: Credential| async move {
    ///     let spent = credential.fields()["refresh_token"].as_str().unwrap_or_default();
    ///     let (access, refresh) = ask_provider(spent).await?;
    ///     Ok(Map::from_iter([
    ///         ("access_token".into(), access.into()),
    ///         ("refresh_token".into(), refresh.into()),
    ///     ]))
    /// };
    /// let refreshed = storage.refresh_once("a", &Refresh::default(), is_fresh, refresh).await?;
    /// assert_eq!(refreshed.into_credential().fields()["refresh_token"], "r2");
    /// # Ok(()) }
    /// ```
    pub fn refresh_once<E, F>(
        &self,
        id: impl IntoKey,
        how: &Refresh,
        is_fresh: impl Fn(&Credential) -> bool + Send + Sync + 'static,
        refresh: impl FnOnce(Credential) -> F + Send + 'static,
    ) -> impl Future<Output = Result<Refreshed, RefreshError<E>>> + Send
    where
        B: Conditional + Leases,
        E: Send + 'static,
        F: Future<Output = Result<Map<String, Value>, Refused<E>>> + Send + 'static,
    {
        let id = id.into_key().map(|id| id.borrow().clone());
        async move {
            let (id, begun) = (id?, Instant::now());
            let first = self.backend().get_credential(&id).await;
            if let Ok(stored) = &first
                && is_fresh(stored)
            {
                return Ok(Refreshed::Fresh(stored.clone()));
            }
            let span = tracing::info_span!(
                target: "gateway_storage",
                "refresh",
                otel.name = "refresh",
                db.system.name = system_name(self.label()),
                gateway_storage.refresh.result = Empty,
            );
            let refreshed = self.refresh(id, how, begun, first, is_fresh, refresh);
            let refreshed = refreshed.instrument(span.clone()).await;
            let result = result_name(&refreshed);
            span.record("gateway_storage.refresh.result", result);
            metrics::histogram!(
                "gateway_storage.refresh.duration",
                "db.system.name" => system_name(self.label()),
                "gateway_storage.refresh.result" => result,
            )
            .record(begun.elapsed());
            refreshed
        }
    }

    async fn refresh<E, F>(
        &self,
        id: Key,
        how: &Refresh,
        begun: Instant,
        first: Result<Credential>,
        is_fresh: impl Fn(&Credential) -> bool + Send + Sync + 'static,
        refresh: impl FnOnce(Credential) -> F + Send + 'static,
    ) -> Refreshing<E>
    where
        B: Conditional + Leases,
        E: Send + 'static,
        F: Future<Output = Answer<E>> + Send + 'static,
    {
        how.check(&first?)?;
        let until = later(begun, how.wait);
        let flight = loop {
            match self.flights.refresh(&id) {
                Ok(flight) => break flight,
                Err(joined) => match timeout_at(until, joined.end()).await {
                    Ok(Some(End::Refreshed(theirs))) => return Ok(Refreshed::Theirs(theirs)),
                    Ok(Some(End::Rejected)) => return Err(RefreshError::Rejected(None)),
                    Ok(Some(End::Failed) | None) | Err(_) => return Err(RefreshError::Busy),
                    // That caller does not wait any longer; this one does.
                    Ok(Some(End::Busy)) => sleep(FIRST_PAUSE).await,
                },
            }
        };
        let (result, refreshed) = oneshot::channel();
        let task = Task { storage: self.clone(), id, how: how.clone(), until };
        tokio::spawn(task.run(flight, is_fresh, refresh, result).in_current_span());
        match timeout_at(until, refreshed).await {
            Ok(Ok(refreshed)) => refreshed,
            Ok(Err(_)) => Err(RefreshError::Panicked),
            Err(_) => Err(RefreshError::Busy),
        }
    }
}

fn result_name<E>(refreshed: &Refreshing<E>) -> &'static str {
    match refreshed {
        Ok(Refreshed::Fresh(_)) => "fresh",
        Ok(Refreshed::Mine(_)) => "mine",
        Ok(Refreshed::Theirs(_)) => "theirs",
        Err(RefreshError::Store(_)) => "store_error",
        Err(RefreshError::Provider(_)) => "provider_error",
        Err(RefreshError::Rejected(_)) => "rejected",
        Err(RefreshError::Busy) => "busy",
        Err(RefreshError::Panicked) => "panicked",
        Err(RefreshError::NotStored { .. }) => "not_stored",
    }
}

impl Refresh {
    /// Whether a refresh may be tried.
    fn check<E>(&self, credential: &Credential) -> Result<(), RefreshError<E>> {
        check_ttl(self.lease)?;
        check_rest(self.rest)?;
        match self.token_of(credential) {
            None => {
                let error = Error::new(ErrorKind::InvalidValue, "the credential has no refresh token");
                Err(RefreshError::Store(error.with_path(self.token_field.as_str())))
            }
            Some(_) if self.has_mark(credential) => Err(RefreshError::Rejected(None)),
            Some(_) => Ok(()),
        }
    }

    fn token_of<'c>(&self, credential: &'c Credential) -> Option<&'c Value> {
        credential.get(&self.token_field)
    }

    fn has_same_token(&self, one: &Credential, other: &Credential) -> bool {
        self.token_of(one) == self.token_of(other)
    }

    /// The mark of a credential whose token is rejected.
    fn mark_of(&self, credential: &Credential) -> Value {
        let token = self.token_of(credential).map(Value::to_string).unwrap_or_default();
        Revision::of(token.as_bytes()).to_string().into()
    }

    fn has_mark(&self, credential: &Credential) -> bool {
        credential.get(&self.rejected_field).is_some_and(|mark| *mark == self.mark_of(credential))
    }
}

/// The name of the lease of a credential: a suffix, so that it is the same through a scope and without it. It
/// is cut to the longest key, and never into the id.
fn lease_name(id: &Key, max_key_bytes: usize) -> Result<Key> {
    let mut name = [id.as_str(), ":refresh"].concat();
    name.truncate(max_key_bytes.max(id.as_str().len()));
    Key::new(&name)
}

/// A refresh, in a task of its own.
struct Task<B> {
    storage: Storage<B>,
    id: Key,
    how: Refresh,
    /// When it stops waiting for another process.
    until: Instant,
}

impl<B: Conditional + Leases> Task<B> {
    async fn run<E, F>(
        self,
        flight: Flight<End>,
        is_fresh: impl Fn(&Credential) -> bool + Send + Sync,
        refresh: impl FnOnce(Credential) -> F + Send,
        result: oneshot::Sender<Refreshing<E>>,
    ) where
        E: Send,
        F: Future<Output = Answer<E>> + Send,
    {
        let (lease, sent) = match self.turn(&is_fresh).await {
            Ok(turn) => turn,
            Err(refreshed) => return finish(Some(flight), refreshed, result),
        };
        let Some(spending) = self.storage.flights.spend() else {
            self.release(&lease, Duration::ZERO).await;
            return finish(Some(flight), Err(Error::closed().into()), result);
        };
        let mut flight = Some(flight);
        let mut kept = pin!(async {
            self.storage.keep_lease(&lease, self.how.lease).await;
            // The token is spent, so the refresh goes on.
            pending::<Infallible>().await
        });
        let limited = timeout(self.how.longest, kept.as_mut());
        let answer = match select(pin!(refresh(sent.clone())), pin!(limited)).await {
            Either::Left((answer, _)) => answer,
            Either::Right((_, asking)) => {
                // Callers of this process may begin another refresh, too.
                flight = None;
                asking.await
            }
        };
        let settled = pin!(self.settle(&sent, answer, &is_fresh));
        let refreshed = match select(settled, kept).await {
            Either::Left((refreshed, _)) => refreshed,
            Either::Right((never, _)) => match never {},
        };
        drop(spending);
        metrics::counter!(
            "gateway_storage.refresh.answers",
            "db.system.name" => system_name(self.storage.label()),
            "gateway_storage.refresh.result" => result_name(&refreshed),
        )
        .increment(1);
        let rest = match &refreshed {
            Ok(Refreshed::Mine(stored)) if !is_fresh(stored) => Some(self.how.rest),
            Err(RefreshError::Provider(_)) => Some(self.how.rest),
            // The lease ends by itself, so that the spent token is not sent again at once.
            Err(RefreshError::NotStored { .. }) => None,
            _ => Some(Duration::ZERO),
        };
        finish(flight, refreshed, result);
        if let Some(rest) = rest {
            self.release(&lease, rest).await;
        }
    }

    /// Waits for the lease, and reads the credential. `Err` is the result if there is nothing to refresh.
    async fn turn<E>(
        &self,
        is_fresh: &(impl Fn(&Credential) -> bool + Sync),
    ) -> Result<(Lease, Credential), Refreshing<E>> {
        let max_key_bytes = self.storage.backend().max_key_bytes();
        let (name, holder) = (lease_name(&self.id, max_key_bytes).map_err(failed)?, Holder::random());
        loop {
            let claim = || self.storage.claim_lease(&name, &holder, self.how.lease);
            let claimed = match claim().await {
                // The lease may be ours, and would then keep all others waiting.
                Err(error) if error.outcome() == Outcome::Unknown => claim().await,
                claimed => claimed,
            };
            match claimed.map_err(failed)? {
                Claim::Yours(lease) => match self.prepare(is_fresh).await {
                    Ok(credential) if !lease.time_left().is_zero() => return Ok((lease, credential)),
                    refused => {
                        self.release(&lease, Duration::ZERO).await;
                        refused?;
                    }
                },
                Claim::Theirs { left } => self.look(left, is_fresh).await?,
            }
            if Instant::now() >= self.until {
                return Err(Err(RefreshError::Busy));
            }
        }
    }

    /// Reads the credential under the lease, and writes it as it is: the token is spent only if the store
    /// takes the new one.
    async fn prepare<E>(
        &self,
        is_fresh: &(impl Fn(&Credential) -> bool + Sync),
    ) -> Result<Credential, Refreshing<E>> {
        loop {
            let read = self.storage.get_credential_with_revision(&self.id).await;
            let (credential, revision) = read.map_err(failed)?;
            let credential = self.unless_done(credential, is_fresh)?;
            let condition = Condition::Unchanged(revision);
            match self.storage.set_credential_if(&self.id, credential.clone(), condition).await {
                Ok(_) => return Ok(credential),
                Err(error) if error.kind() == ErrorKind::Conflict && Instant::now() < self.until => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Looks at the credential for a while, as another process refreshes it.
    async fn look<E>(
        &self,
        left: Duration,
        is_fresh: &(impl Fn(&Credential) -> bool + Sync),
    ) -> Result<(), Refreshing<E>> {
        let free = later(Instant::now(), left).min(self.until);
        for _ in 0..LOOKS_PER_CLAIM {
            let look = pin!(sleep_until((Instant::now() + jittered(LOOK_PAUSE)).min(free)));
            // While something watches the store, its next change is a reason to look.
            match self.storage.backend().next_change(DocumentKind::Credential, &self.id) {
                Some(changed) => drop(select(look, changed).await),
                None => look.await,
            }
            let read = self.storage.get_credential(&self.id).await;
            self.unless_done(read.map_err(failed)?, is_fresh)?;
            if Instant::now() >= free {
                break;
            }
        }
        Ok(())
    }

    /// The credential, unless another process has refreshed or marked it.
    fn unless_done<E>(
        &self,
        credential: Credential,
        is_fresh: &impl Fn(&Credential) -> bool,
    ) -> Result<Credential, Refreshing<E>> {
        if is_fresh(&credential) {
            return Err(Ok(Refreshed::Theirs(credential)));
        }
        self.how.check(&credential).map_err(Err)?;
        Ok(credential)
    }

    /// If this fails, the lease ends by itself.
    async fn release(&self, lease: &Lease, rest: Duration) {
        drop(self.storage.release_lease(lease, rest).await);
    }

    /// Does what the provider's answer demands.
    async fn settle<E>(
        &self,
        sent: &Credential,
        answer: Answer<E>,
        is_fresh: &(impl Fn(&Credential) -> bool + Sync),
    ) -> Refreshing<E> {
        match answer {
            Ok(patch) => self.store(sent, patch).await,
            Err(Refused::Other(error)) => Err(RefreshError::Provider(error)),
            Err(Refused::Token(error)) => match self.until_stored(|| self.try_mark(sent)).await {
                Ok(None) => Err(RefreshError::Rejected(Some(error))),
                Ok(Some(theirs)) if is_fresh(&theirs) => Ok(Refreshed::Theirs(theirs)),
                // The credential has another token now, or could not be marked.
                Ok(Some(_)) | Err(_) => Err(RefreshError::Provider(error)),
            },
        }
    }

    /// Stores a new token, as long as the stored credential has the spent one, whichever process has the
    /// lease by now.
    async fn store<E>(&self, sent: &Credential, patch: Map<String, Value>) -> Refreshing<E> {
        let error = match self.until_stored(|| self.try_store(sent, &patch)).await {
            Ok(refreshed) => return Ok(refreshed),
            Err(error) => error,
        };
        let kind = error.kind().as_str();
        tracing::error!(target: "gateway_storage", operation = "refresh_once", "error.type" = kind, "a new token is not stored");
        let mut token = patch.clone();
        token.retain(|name, _| *name == self.how.token_field);
        let whole = self.merge(sent, &patch).or_else(|_| Credential::new(patch));
        let credential = whole.or_else(|_| self.merge(sent, &token)).unwrap_or_else(|_| sent.clone());
        // At least the token, if the rest is what the store refuses.
        if matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::InvalidValue) && !token.is_empty() {
            drop(self.until_stored(|| self.try_store(sent, &token)).await);
        }
        Err(RefreshError::NotStored { credential, error })
    }

    /// Repeats until the store has taken it, or never will.
    async fn until_stored<T, F: Future<Output = Result<T>>>(&self, attempt: impl Fn() -> F) -> Result<T> {
        use ErrorKind::{Closed, InvalidValue, NotFound, TooLarge};

        let mut pause = FIRST_PAUSE;
        loop {
            match attempt().await {
                // Each attempt reads first, so what an earlier one stored is found.
                Err(error) if !matches!(error.kind(), Closed | InvalidValue | NotFound | TooLarge) => {
                    let kind = error.kind().as_str();
                    tracing::debug!(target: "gateway_storage", operation = "refresh_once", "error.type" = kind, "tries again to store the provider's answer");
                }
                stored => return stored,
            }
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn try_store(&self, sent: &Credential, patch: &Map<String, Value>) -> Result<Refreshed> {
        let (stored, revision) = self.storage.get_credential_with_revision(&self.id).await?;
        let is_done = patch.iter().all(|(name, value)| stored.get(name) == Some(value));
        if is_done && !self.how.has_mark(&stored) {
            return Ok(Refreshed::Mine(stored));
        }
        // Another token is stored, or, if the provider gave no other one, another answer.
        let is_rotated =
            patch.get(&self.how.token_field).is_some_and(|token| Some(token) != self.how.token_of(sent));
        let is_changed = |name: &String| stored.get(name) != sent.get(name);
        if !self.how.has_same_token(&stored, sent) || (!is_rotated && patch.keys().any(is_changed)) {
            return Ok(Refreshed::Theirs(stored));
        }
        let merged = self.merge(&stored, patch)?;
        self.storage.set_credential_if(&self.id, merged.clone(), Condition::Unchanged(revision)).await?;
        Ok(Refreshed::Mine(merged))
    }

    fn merge(&self, stored: &Credential, patch: &Map<String, Value>) -> Result<Credential> {
        let mut fields = stored.fields().clone();
        fields.remove(&self.how.rejected_field);
        fields.extend(patch.clone());
        Credential::new(fields)
    }

    /// Marks the credential, if it still has the rejected token. Otherwise returns it.
    async fn try_mark(&self, sent: &Credential) -> Result<Option<Credential>> {
        let (stored, revision) = self.storage.get_credential_with_revision(&self.id).await?;
        if !self.how.has_same_token(&stored, sent) {
            return Ok(Some(stored));
        }
        if self.how.has_mark(&stored) {
            return Ok(None);
        }
        let mut fields = stored.fields().clone();
        fields.insert(self.how.rejected_field.clone(), self.how.mark_of(&stored));
        let marked = Credential::new(fields)?;
        self.storage.set_credential_if(&self.id, marked, Condition::Unchanged(revision)).await?;
        Ok(None)
    }
}

fn failed<E>(error: Error) -> Refreshing<E> {
    Err(error.into())
}

/// Passes the result to the caller and to those that joined.
fn finish<E>(flight: Option<Flight<End>>, refreshed: Refreshing<E>, result: oneshot::Sender<Refreshing<E>>) {
    if let Some(flight) = flight {
        flight.end(match &refreshed {
            Ok(
                Refreshed::Fresh(credential) | Refreshed::Mine(credential) | Refreshed::Theirs(credential),
            ) => End::Refreshed(credential.clone()),
            Err(RefreshError::Rejected(_)) => End::Rejected,
            Err(RefreshError::Busy) => End::Busy,
            Err(_) => End::Failed,
        });
    }
    // The caller may be gone.
    drop(result.send(refreshed));
}
