//! One refresh, as a gateway does it. The rest of this program only counts what became of it.

use std::{fmt, time::Duration};

use gateway_storage::{
    Credential, Storage,
    lease::Leases,
    refresh::{Refresh, RefreshError, Refreshed, Refused},
    revision::Conditional,
};
use serde_json::{Map, Value};
use testkit::provider::{Refusal, refresh_as};

/// A backend on which tokens can be refreshed.
pub(crate) trait Refreshable: Conditional + Leases {}

impl<B: Conditional + Leases> Refreshable for B {}

/// The field that marks a credential whose token was rejected.
pub(crate) const REJECTED: &str = "refresh_rejected";

/// What the refreshes of a worker have in common.
#[derive(Clone)]
pub(crate) struct Job {
    /// The address of the provider.
    pub(crate) provider: String,
    /// The name of the worker, which the provider keeps with each use of a token.
    pub(crate) client: String,
    pub(crate) lease: Duration,
    /// How long a caller waits at most.
    pub(crate) wait: Duration,
    pub(crate) is_protected: bool,
}

/// How a refresh ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    /// With this access token, which was there already.
    Fresh(String),
    /// With this access token, for which this call asked.
    Mine(String),
    /// With this access token, for which another call asked.
    Theirs(String),
    /// The credential is marked as rejected.
    Rejected,
    /// An error of the store or of the provider, or the caller waited for too long.
    Failed(String),
}

/// As one line.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh(token) => write!(f, "fresh {token}"),
            Self::Mine(token) => write!(f, "mine {token}"),
            Self::Theirs(token) => write!(f, "theirs {token}"),
            Self::Rejected => f.write_str("rejected -"),
            Self::Failed(error) => write!(f, "failed {}", error.replace('\n', " ")),
        }
    }
}

impl Ended {
    pub(crate) fn read(kind: &str, text: &str) -> Self {
        match kind {
            "fresh" => Self::Fresh(text.to_owned()),
            "mine" => Self::Mine(text.to_owned()),
            "theirs" => Self::Theirs(text.to_owned()),
            "rejected" => Self::Rejected,
            "failed" => Self::Failed(text.to_owned()),
            other => panic!("a refresh ends as {other:?}"),
        }
    }
}

/// A credential is fresh if it was refreshed in this round or later.
pub(crate) fn is_fresh(credential: &Credential, round: u64) -> bool {
    credential.fields()["round"].as_u64() >= Some(round)
}

pub(crate) fn is_rejected(credential: &Credential) -> bool {
    credential.get(REJECTED).is_some()
}

pub(crate) fn access_token(credential: &Credential) -> String {
    credential.fields()["access_token"].as_str().expect("a token").to_owned()
}

/// Spends the token of a credential, and returns what changes.
pub(crate) async fn spend(
    credential: Credential,
    round: u64,
    job: Job,
) -> Result<Map<String, Value>, Refusal> {
    let spent = credential.fields()["refresh_token"].as_str().expect("a token");
    let tokens = refresh_as(&job.provider, spent, &job.client).await?;
    Ok(Map::from_iter([
        ("access_token".to_owned(), tokens.access_token.into()),
        ("refresh_token".to_owned(), tokens.refresh_token.into()),
        ("round".to_owned(), round.into()),
    ]))
}

pub(crate) async fn refresh_one<B: Refreshable>(
    storage: &Storage<B>,
    id: &str,
    round: u64,
    job: &Job,
) -> Ended {
    if !job.is_protected {
        let ended = unprotected(storage, id, round, job).await;
        return ended.unwrap_or_else(|error| Ended::Failed(error.to_string()));
    }
    let mut how = Refresh::default();
    (how.lease, how.wait) = (job.lease, job.wait);
    // In the next round an account that was revoked has logged in again.
    how.rest = how.rest.min(job.lease);
    let refresh = {
        let job = job.clone();
        move |credential| async move {
            spend(credential, round, job).await.map_err(|refusal| match refusal {
                Refusal::InvalidGrant => Refused::Token(format!("{refusal:?}")),
                Refusal::Retry { .. } | Refusal::Lost => Refused::Other(format!("{refusal:?}")),
            })
        }
    };
    match storage.refresh_once(id, &how, move |credential| is_fresh(credential, round), refresh).await {
        Ok(Refreshed::Fresh(credential)) => Ended::Fresh(access_token(&credential)),
        Ok(Refreshed::Mine(credential)) => Ended::Mine(access_token(&credential)),
        Ok(Refreshed::Theirs(credential)) => Ended::Theirs(access_token(&credential)),
        Err(RefreshError::Rejected(_)) => Ended::Rejected,
        Err(other) => Ended::Failed(format!("{other:?}")),
    }
}

/// What many gateways do.
async fn unprotected<B: Refreshable>(
    storage: &Storage<B>,
    id: &str,
    round: u64,
    job: &Job,
) -> gateway_storage::Result<Ended> {
    let credential = storage.get_credential(id).await?;
    if is_fresh(&credential, round) {
        return Ok(Ended::Fresh(access_token(&credential)));
    }
    let mut fields = credential.fields().clone();
    let ended = match spend(credential, round, job.clone()).await {
        Ok(changed) => {
            fields.extend(changed);
            Ended::Mine(fields["access_token"].as_str().expect("a token").to_owned())
        }
        Err(Refusal::InvalidGrant) => {
            fields.insert(REJECTED.to_owned(), true.into());
            Ended::Rejected
        }
        Err(other) => return Ok(Ended::Failed(format!("{other:?}"))),
    };
    storage.set_credential(id, Credential::new(fields)?).await?;
    Ok(ended)
}
