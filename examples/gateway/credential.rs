//! The pool of credentials, and how one is refreshed.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use gateway_storage::{Credential, CredentialStore, Error, Key, Result, Storage, revision::Conditional};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::Mutex, time::sleep};

use crate::served::timed;

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
    /// Locked during a refresh. Contains the fields that the last refresh of this run stored, for the proof.
    refresh: Mutex<Option<OAuth>>,
}

impl Member {
    /// The credential with a valid token, and whether it was refreshed for that.
    pub(crate) async fn fresh<B: Conditional>(
        &self,
        storage: &Storage<B>,
        now: SystemTime,
        spent: &mut Duration,
    ) -> Result<(OAuth, bool)> {
        let oauth: OAuth = timed(spent, storage.get_credential_as(&self.id)).await?;
        if oauth.is_fresh(now) {
            return Ok((oauth, false));
        }
        // One refresh at a time, because a refresh token can be used only once. This lock covers only this
        // process: where several processes share a store, let one of them refresh. `transact!` is no
        // substitute: all processes ask the provider before one of them commits.
        let mut last = self.refresh.lock().await;
        // A task that waited for the lock finds the token of the refresh before.
        let oauth: OAuth = timed(spent, storage.get_credential_as(&self.id)).await?;
        if oauth.is_fresh(now) {
            return Ok((oauth, false));
        }
        let granted = ask_upstream(&oauth, now).await;
        let update = storage.update_credential_as(&self.id, |_: OAuth| {
            let granted = granted.clone();
            async { Ok::<_, Error>(granted) }
        });
        let stored = timed(spent, update).await?;
        *last = Some(stored.clone());
        Ok((stored, true))
    }
}

/// The token endpoint, simulated.
async fn ask_upstream(oauth: &OAuth, now: SystemTime) -> OAuth {
    sleep(Duration::from_millis(3)).await;
    let refresh_count = oauth.refresh_count.saturating_add(1);
    OAuth {
        access_token: format!("simulated-access-token-{refresh_count}"),
        refresh_token: format!("simulated-refresh-token-{refresh_count}"),
        expiry: humantime::format_rfc3339_seconds(now + LIFETIME).to_string().into(),
        refresh_count,
    }
}

/// The credentials that are not disabled.
pub(crate) struct Pool(Vec<Member>);

impl Pool {
    pub(crate) async fn new<B: CredentialStore>(storage: &Storage<B>) -> Result<Self> {
        let mut members = Vec::new();
        for (id, credential) in all_credentials(storage).await? {
            if credential.get("disabled") != Some(&Value::Bool(true)) {
                members.push(Member { usage: usage_key(&id)?, id, refresh: Mutex::default() });
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
    pub(crate) async fn refreshed(&self) -> Vec<(Key, Credential)> {
        let mut refreshed = Vec::new();
        for member in &self.0 {
            if let Some(oauth) = &*member.refresh.lock().await {
                let fields = Credential::from_typed(oauth).expect("it was stored, so it is valid");
                refreshed.push((member.id.clone(), fields));
            }
        }
        refreshed
    }
}

/// Every stored credential.
pub(crate) async fn all_credentials<B: CredentialStore>(
    storage: &Storage<B>,
) -> Result<BTreeMap<Key, Credential>> {
    let found = storage.get_credentials(&storage.list_credentials().await?).await?;
    match found.failures.into_iter().next() {
        None => Ok(found.credentials),
        Some(failure) => Err(failure.error),
    }
}
