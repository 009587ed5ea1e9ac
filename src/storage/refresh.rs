//! `refresh_once`: of many callers and processes one spends a refresh token, and all get the new one.

use std::{borrow::Borrow, pin::pin, time::Duration};

use futures_util::future::{Either, pending, select};
use serde_json::{Map, Value};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{Instrument as _, field::Empty};

use super::flight::{End, Flight};
use crate::{
    Credential, Error, ErrorKind, IntoKey, Key, Outcome, Result, Storage,
    capability::{Conditional, Leases},
    layer::system_name,
    model::{Claim, Condition, Holder, Lease},
};

/// The longest pause between two looks at a credential that another process refreshes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The first and the longest pause before storing a new token is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How [`Storage::refresh_once`] refreshes. `Refresh::default()` suits OAuth.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Refresh {
    /// The time to live of the lease, which is renewed each third of it: 30 s. If the process dies, another
    /// one can refresh after this time. A process that is paused for longer can spend a token twice.
    pub lease: Duration,
    /// How long the lease is renewed at most: 5 minutes. Then another process may refresh, though the answer
    /// to this one is still awaited.
    pub longest: Duration,
    /// How long a caller waits at most: 60 s. A refresh that has begun goes on without the caller.
    pub wait: Duration,
    /// The pause after a failed refresh, for all processes: 5 s.
    pub rest: Duration,
    /// The field of the credential with the token that a refresh spends: `refresh_token`.
    pub token_field: String,
    /// The field that marks a credential whose token the provider rejected: `refresh_rejected`, which is set
    /// to `true`. A marked credential is not refreshed. A new token removes the mark.
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

/// A fresh credential, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Refreshed {
    /// It was fresh.
    Fresh(Credential),
    /// This call refreshed it.
    Mine(Credential),
    /// Another call or process refreshed it while this one waited.
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

/// `?` makes any error an [`Other`](Refused::Other) one.
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
    /// Another caller or process is refreshing the credential, or a refresh failed and the pause is not over.
    #[error("another refresh of this credential is running, or failed a moment ago: try again later")]
    Busy,
    /// The provider gave a new token, which can't be stored, for a reason that does not pass. The old token
    /// is spent, so use this credential, and store it elsewhere.
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
impl<B: Conditional + Leases> Storage<B> {
    /// Returns a credential that is fresh, and refreshes it if needed: of all callers in all processes one
    /// calls the provider, and the others wait and get what it stored.
    ///
    /// `is_fresh` looks at a credential. `refresh` spends its token and returns the fields that change.
    /// These are merged into the credential as it is stored then, so no change of another writer is lost.
    /// `refresh` should end by itself: it needs a timeout for its request.
    ///
    /// # Promise
    ///
    /// A token is sent once, unless a process is paused for longer than the lease, or the server ends a lease
    /// early by a failover or a change of its clock. Even then no stored state is wrong: a new token replaces
    /// only the one that was spent for it, and a credential is only marked as rejected if it still has the
    /// rejected token. The [module](crate::refresh) says what can't be promised, and why.
    ///
    /// # Errors
    ///
    /// See [`RefreshError`]. If the store can't be written, the provider is not asked.
    ///
    /// # Cancellation
    ///
    /// The refresh runs in a task of its own. If the caller is dropped, it goes on, and its result is stored.
    /// [`close`](Storage::close) waits for it. A new token that the store does not take for now is stored
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
        E: Send + 'static,
        F: Future<Output = Result<Map<String, Value>, Refused<E>>> + Send + 'static,
    {
        let id = id.into_key().map(|id| id.borrow().clone());
        async move {
            let (id, begun) = (id?, Instant::now());
            let stored = self.backend().get_credential(&id).await?;
            if is_fresh(&stored) {
                return Ok(Refreshed::Fresh(stored));
            }
            let span = tracing::info_span!(
                target: "gateway_storage",
                "refresh",
                otel.name = "refresh",
                db.system.name = system_name(self.label()),
                gateway_storage.refresh.result = Empty,
            );
            let refreshed = async {
                if how.has_mark(&stored) {
                    return Err(RefreshError::Rejected(None));
                }
                let until = begun + how.wait;
                let flight = loop {
                    match self.flights().begin(&id) {
                        Ok(flight) => break flight,
                        Err(joined) => match timeout_at(until, joined.end()).await {
                            Ok(End::Refreshed(theirs)) if is_fresh(&theirs) => {
                                return Ok(Refreshed::Theirs(theirs));
                            }
                            Ok(End::Refreshed(_) | End::Busy) => {}
                            Ok(End::Rejected) => return Err(RefreshError::Rejected(None)),
                            Ok(End::Failed) | Err(_) => return Err(RefreshError::Busy),
                        },
                    }
                };
                let (result, refreshed) = oneshot::channel();
                let task = Task { storage: self.clone(), id, how: how.clone(), until };
                tokio::spawn(task.run(flight, is_fresh, refresh, result).in_current_span());
                match timeout_at(until, refreshed).await {
                    Ok(Ok(refreshed)) => refreshed,
                    Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "the refresh panicked").into()),
                    Err(_) => Err(RefreshError::Busy),
                }
            };
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
        Err(RefreshError::NotStored { .. }) => "not_stored",
    }
}

impl Refresh {
    fn has_mark(&self, credential: &Credential) -> bool {
        credential.fields().get(&self.rejected_field) == Some(&Value::Bool(true))
    }

    fn has_same_token(&self, one: &Credential, other: &Credential) -> bool {
        one.fields().get(&self.token_field) == other.fields().get(&self.token_field)
    }
}

/// The name of the lease of a credential. A long id is cut, so that some share a lease, which only delays.
fn lease_name(id: &Key) -> Result<Key> {
    const PREFIX: &str = "refresh:";
    let mut end = id.as_str().len().min(Key::MAX_BYTES - PREFIX.len());
    while !id.as_str().is_char_boundary(end) {
        end -= 1;
    }
    Key::new(&[PREFIX, &id.as_str()[..end]].concat())
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
        flight: Flight,
        is_fresh: impl Fn(&Credential) -> bool + Send + Sync,
        refresh: impl FnOnce(Credential) -> F + Send,
        result: oneshot::Sender<Refreshing<E>>,
    ) where
        E: Send,
        F: Future<Output = Answer<E>> + Send,
    {
        let (lease, sent) = match self.turn(&is_fresh).await {
            Ok(turn) => turn,
            Err(refreshed) => return finish(&flight, refreshed, result),
        };
        let mut flight = Some(flight);
        let settled = pin!(async { self.settle(&sent, refresh(sent.clone()).await, &is_fresh).await });
        let refreshed = match select(settled, pin!(self.renewed(&lease))).await {
            Either::Left((refreshed, _)) => refreshed,
            Either::Right(((), settled)) => {
                // Callers of this process may begin another refresh, too.
                flight = None;
                settled.await
            }
        };
        let failed = matches!(refreshed, Err(RefreshError::Provider(_) | RefreshError::Rejected(_)));
        match &flight {
            Some(flight) => finish(flight, refreshed, result),
            None => drop(result.send(refreshed)),
        }
        self.release(&lease, if failed { self.how.rest } else { Duration::ZERO }).await;
    }

    /// Waits for the lease, and reads the credential. `Err` is the result if there is nothing to refresh.
    async fn turn<E>(
        &self,
        is_fresh: &(impl Fn(&Credential) -> bool + Sync),
    ) -> Result<(Lease, Credential), Refreshing<E>> {
        let store = |error: Error| Err(RefreshError::Store(error));
        let (name, holder) = (lease_name(&self.id).map_err(store)?, Holder::random());
        let ready = |credential: Credential| {
            if is_fresh(&credential) {
                Err(Ok(Refreshed::Theirs(credential)))
            } else if self.how.has_mark(&credential) {
                Err(Err(RefreshError::Rejected(None)))
            } else {
                Ok(credential)
            }
        };
        loop {
            let claim = || self.storage.claim_lease(&name, &holder, self.how.lease);
            let claimed = match claim().await {
                // The lease may be ours, and would then keep all others waiting.
                Err(error) if error.outcome() == Outcome::Unknown => claim().await,
                claimed => claimed,
            };
            let lease = match claimed.map_err(store)? {
                Claim::Yours(lease) => Some(lease),
                Claim::Theirs { left } => {
                    let rest = self.until.saturating_duration_since(Instant::now());
                    sleep(LOOK_PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0).min(left).min(rest)).await;
                    None
                }
            };
            let read = self.storage.get_credential(&self.id).await.map_err(store).and_then(ready);
            match (lease, read) {
                (Some(lease), Ok(credential)) if !lease.time_left().is_zero() => {
                    return Ok((lease, credential));
                }
                (Some(lease), read) => {
                    self.release(&lease, Duration::ZERO).await;
                    read?;
                }
                (None, read) => {
                    read?;
                    if Instant::now() >= self.until {
                        return Err(Err(RefreshError::Busy));
                    }
                }
            }
        }
    }

    /// Renews the lease as long as the refresh may take.
    async fn renewed(&self, lease: &Lease) {
        let kept = async {
            self.storage.keep_lease(lease, self.how.lease).await;
            // The refresh goes on: the token is spent.
            pending().await
        };
        timeout(self.how.longest, kept).await.unwrap_or(());
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
            Ok(patch) => self.store(sent, &patch).await,
            Err(Refused::Other(error)) => Err(RefreshError::Provider(error)),
            Err(Refused::Token(error)) => match self.mark(sent).await {
                None => Err(RefreshError::Rejected(Some(error))),
                Some(theirs) if is_fresh(&theirs) => Ok(Refreshed::Theirs(theirs)),
                Some(_) => Err(RefreshError::Provider(error)),
            },
        }
    }

    /// Stores a new token, as long as the stored credential has the spent one, whichever process has the
    /// lease by now.
    async fn store<E>(&self, sent: &Credential, patch: &Map<String, Value>) -> Refreshing<E> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.try_store(sent, patch).await {
                Ok(refreshed) => return Ok(refreshed),
                Err(error) => error,
            };
            if !passes(error.kind()) {
                let kind = error.kind().as_str();
                tracing::error!(target: "gateway_storage", operation = "refresh_once", "error.type" = kind, "a new token is not stored");
                let credential = self.merge(sent, patch).or_else(|_| Credential::new(patch.clone()));
                let credential = credential.unwrap_or_else(|_| sent.clone());
                return Err(RefreshError::NotStored { credential, error });
            }
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn try_store(&self, sent: &Credential, patch: &Map<String, Value>) -> Result<Refreshed> {
        let (stored, revision) = self.storage.get_credential_with_revision(&self.id).await?;
        let merged = self.merge(&stored, patch)?;
        if !self.how.has_same_token(&stored, sent) {
            // An earlier attempt with a lost answer stored it, or there is a newer one.
            let is_mine = self.how.has_same_token(&stored, &merged);
            return Ok(if is_mine { Refreshed::Mine(stored) } else { Refreshed::Theirs(stored) });
        }
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
    async fn mark(&self, sent: &Credential) -> Option<Credential> {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = match self.try_mark(sent).await {
            Ok(marked) => return marked,
            error => error,
        } {
            if !passes(error.kind()) || Instant::now() >= self.until {
                break;
            }
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        None
    }

    async fn try_mark(&self, sent: &Credential) -> Result<Option<Credential>> {
        let (stored, revision) = self.storage.get_credential_with_revision(&self.id).await?;
        if !self.how.has_same_token(&stored, sent) {
            return Ok(Some(stored));
        }
        let mut fields = stored.fields().clone();
        fields.insert(self.how.rejected_field.clone(), true.into());
        let marked = Credential::new(fields)?;
        self.storage.set_credential_if(&self.id, marked, Condition::Unchanged(revision)).await?;
        Ok(None)
    }
}

/// Gives the result to the caller and to those that joined.
fn finish<E>(flight: &Flight, refreshed: Refreshing<E>, result: oneshot::Sender<Refreshing<E>>) {
    flight.end(match &refreshed {
        Ok(Refreshed::Fresh(credential) | Refreshed::Mine(credential) | Refreshed::Theirs(credential)) => {
            End::Refreshed(credential.clone())
        }
        Err(RefreshError::NotStored { credential, .. }) => End::Refreshed(credential.clone()),
        Err(RefreshError::Rejected(_)) => End::Rejected,
        Err(RefreshError::Busy) => End::Busy,
        Err(_) => End::Failed,
    });
    // The caller may be gone.
    drop(result.send(refreshed));
}

/// Whether the same call may succeed later, or after another reading.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Busy | ErrorKind::Conflict)
}
