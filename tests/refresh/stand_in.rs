//! Stands in for `Storage::refresh_once`, with a lease in a config value, by the clock of the machine.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use gateway_storage::{
    Credential, ErrorKind, Key, Record, Result, Storage,
    history::DocumentKind,
    revision::{Condition, Revision},
};
use serde_json::json;
use testkit::provider::Refusal;
use tokio::time::{Instant, sleep};

use crate::refresh_one::{Ended, Job, REJECTED, Refreshable, access_token, is_fresh, is_rejected, spend};

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

async fn hold<B: Refreshable>(
    storage: &Storage<B>,
    id: &str,
    time: Duration,
    at: Condition,
) -> Result<Revision> {
    let value = json!({ "until": now() + time.as_millis() as u64, "holder": fastrand::u64(..) });
    storage.set_config_if(format!("lease-{id}"), value, at).await
}

async fn claim<B: Refreshable>(storage: &Storage<B>, id: &str, time: Duration) -> Result<Option<Revision>> {
    let key = Key::new(&format!("lease-{id}"))?;
    let at = match storage.backend().get_with_revision(DocumentKind::Config, &key).await {
        Ok((Record::Config { value, .. }, _)) if value["until"].as_u64() > Some(now()) => return Ok(None),
        Ok((_, revision)) => Condition::Unchanged(revision),
        Err(error) if error.kind() == ErrorKind::NotFound => Condition::Absent,
        Err(error) => return Err(error),
    };
    match hold(storage, id, time, at).await {
        Ok(revision) => Ok(Some(revision)),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(None),
        Err(error) => Err(error),
    }
}

/// In a task of its own, which goes on if the caller is dropped.
pub(crate) async fn refresh_once<B: Refreshable>(
    storage: &Storage<B>,
    id: &str,
    round: u64,
    job: &Job,
) -> Result<Ended> {
    tokio::spawn(refresh(storage.clone(), id.to_owned(), round, job.clone())).await.unwrap()
}

async fn refresh<B: Refreshable>(storage: Storage<B>, id: String, round: u64, job: Job) -> Result<Ended> {
    let begun = Instant::now();
    loop {
        let claimed = Instant::now();
        let lease = claim(&storage, &id, job.lease).await?;
        let credential = storage.get_credential(&id).await?;
        let is_done = is_fresh(&credential, round) || is_rejected(&credential);
        if let Some(lease) = lease {
            if !is_done && claimed.elapsed() < job.lease / 2 {
                return settle(storage, id, round, job, credential, lease).await;
            }
            drop(hold(&storage, &id, Duration::ZERO, Condition::Unchanged(lease)).await);
        }
        if is_rejected(&credential) {
            return Ok(Ended::Rejected);
        }
        if is_done {
            return Ok(Ended::Theirs(access_token(&credential)));
        }
        if begun.elapsed() > job.wait {
            return Ok(Ended::Failed("busy".to_owned()));
        }
        sleep(Duration::from_millis(fastrand::u64(50..100))).await;
    }
}

async fn settle<B: Refreshable>(
    storage: Storage<B>,
    id: String,
    round: u64,
    job: Job,
    sent: Credential,
    lease: Revision,
) -> Result<Ended> {
    let held = Arc::new(tokio::sync::Mutex::new(lease));
    let renewal = tokio::spawn({
        let (storage, id, held) = (storage.clone(), id.clone(), held.clone());
        async move {
            loop {
                sleep(job.lease / 3).await;
                let mut held = held.lock().await;
                match hold(&storage, &id, job.lease, Condition::Unchanged(*held)).await {
                    Ok(renewed) => *held = renewed,
                    Err(_) => return,
                }
            }
        }
    });
    let token = |credential: &Credential| credential.fields()["refresh_token"].clone();
    let answer = spend(sent.clone(), round, job).await;
    let ended = loop {
        let (stored, revision) = storage.get_credential_with_revision(&id).await?;
        if token(&stored) != token(&sent) {
            break Ended::Theirs(access_token(&stored));
        }
        let mut fields = stored.fields().clone();
        match &answer {
            Ok(changed) => fields.extend(changed.clone()),
            Err(Refusal::InvalidGrant) => drop(fields.insert(REJECTED.to_owned(), true.into())),
            Err(other) => break Ended::Failed(format!("{other:?}")),
        }
        let new = Credential::new(fields)?;
        if storage.set_credential_if(&id, &new, Condition::Unchanged(revision)).await.is_ok() {
            break if answer.is_ok() { Ended::Mine(access_token(&new)) } else { Ended::Rejected };
        }
    };
    renewal.abort();
    let held = *held.lock().await;
    drop(hold(&storage, &id, Duration::ZERO, Condition::Unchanged(held)).await);
    Ok(ended)
}
