//! The pool of credentials, and how one is refreshed.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures_util::TryStreamExt;
use gateway_storage::{
    Credential, CredentialStore, Error, ErrorKind, Key, Result, Storage,
    lease::Leases,
    list::ListOptions,
    refresh::{Refresh, RefreshError, Refreshed, Refused},
    revision::Conditional,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::sleep;

/// How long a new access token is valid.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// The fields that this gateway uses. Other fields stay as they are in the store.
///
/// It has no `Debug`, so that tokens can't be printed by mistake.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct OAuth {
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    refresh_token: String,
    /// RFC 3339. Anything else counts as expired, and the first refresh corrects it.
    #[serde(default)]
    expiry: Value,
    #[serde(default)]
    refresh_count: u64,
}

impl OAuth {
    pub(crate) fn can_refresh(&self) -> bool {
        !self.refresh_token.is_empty()
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        let expiry = self.expiry.as_str().and_then(|text| humantime::parse_rfc3339_weak(text).ok());
        !self.access_token.is_empty() && expiry.is_some_and(|expiry| now < expiry)
    }
}

/// The key of this credential's usage record.
pub(crate) fn usage_key(id: &Key) -> Result<Key> {
    Key::new(&format!("credential:{}", id.as_str()))
}

/// One credential of the pool.
pub(crate) struct Member {
    pub(crate) id: Key,
    pub(crate) usage: Key,
    /// The fields that the last refresh of this run stored, for the proof.
    refreshed: Mutex<Option<OAuth>>,
}

impl Member {
    /// The credential with a valid token, and whether it was refreshed for that.
    pub(crate) async fn fresh<B: Conditional + Leases>(
        &self,
        storage: &Storage<B>,
        now: SystemTime,
        spent: &mut Duration,
    ) -> Result<(OAuth, bool)> {
        let begun = Instant::now();
        let is_fresh =
            move |stored: &Credential| stored.to_typed().is_ok_and(|oauth: OAuth| oauth.is_fresh(now));
        let refresh = move |stored: Credential| async move { ask_upstream(&stored, now).await };
        let refreshed = storage.refresh_once(&self.id, &Refresh::default(), is_fresh, refresh).await;
        let refreshed = refreshed.map_err(failed)?;
        let (is_mine, is_read) =
            (matches!(refreshed, Refreshed::Mine(_)), matches!(refreshed, Refreshed::Fresh(_)));
        if is_read {
            *spent += begun.elapsed();
        }
        let oauth: OAuth = refreshed.into_credential().to_typed()?;
        if is_mine {
            let mut last = self.refreshed.lock().unwrap_or_else(PoisonError::into_inner);
            if last.as_ref().is_none_or(|last| last.refresh_count < oauth.refresh_count) {
                *last = Some(oauth.clone());
            }
        }
        Ok((oauth, is_mine))
    }
}

/// The simulated endpoint always answers, so the other cases are those of the store.
fn failed(error: RefreshError<Infallible>) -> Error {
    match error {
        RefreshError::Store(error) | RefreshError::NotStored { error, .. } => error,
        error => Error::new(ErrorKind::Busy, error.to_string()),
    }
}

/// The token endpoint, simulated: the fields that change.
async fn ask_upstream(
    stored: &Credential,
    now: SystemTime,
) -> Result<Map<String, Value>, Refused<Infallible>> {
    sleep(Duration::from_millis(3)).await;
    let count = stored.get("refresh_count").and_then(Value::as_u64).unwrap_or(0).saturating_add(1);
    let expiry = humantime::format_rfc3339_seconds(now + LIFETIME).to_string();
    Ok(Map::from_iter([
        ("access_token".into(), format!("simulated-access-token-{count}").into()),
        ("refresh_token".into(), format!("simulated-refresh-token-{count}").into()),
        ("expiry".into(), expiry.into()),
        ("refresh_count".into(), count.into()),
    ]))
}

/// The credentials that are not disabled.
pub(crate) struct Pool(Vec<Member>);

impl Pool {
    pub(crate) async fn new<B: CredentialStore>(storage: &Storage<B>) -> Result<Self> {
        let mut members = Vec::new();
        let mut stored = pin!(storage.stream_credentials(ListOptions::default()));
        while let Some((id, credential)) = stored.try_next().await? {
            if credential.get("disabled") != Some(&Value::Bool(true)) {
                members.push(Member { usage: usage_key(&id)?, id, refreshed: Mutex::default() });
            }
        }
        Ok(Self(members))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Round robin.
    pub(crate) fn pick(&self, number: u64) -> &Member {
        &self.0[(number % self.0.len() as u64) as usize]
    }

    /// The fields that the last refresh of each credential stored.
    pub(crate) fn refreshed(&self) -> Vec<(Key, Credential)> {
        let last = |member: &Member| {
            let oauth = member.refreshed.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
            let fields = Credential::from_typed(&oauth).expect("it was stored, so it is valid");
            Some((member.id.clone(), fields))
        };
        self.0.iter().filter_map(last).collect()
    }
}
