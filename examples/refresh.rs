//! Refreshes a credential once although two tasks want it, and handles a token that the provider rejects.
//!
//!     cargo run --example refresh --features conformance
//!
//! The provider is the one of this crate's tests, on this machine: it accepts each refresh token once.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use gateway_storage::{
    Credential, File, Storage,
    refresh::{Refresh, RefreshError, Refreshed, Refused},
};
use serde_json::{Map, Value, json};
use testkit::provider::{self, Provider, Refusal, Tokens};
use tokio::time::timeout;

/// The time that a token must still be valid, so that it does not expire during a request.
const MARGIN: Duration = Duration::from_secs(60);

/// The time since 1970, in seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_secs()
}

fn is_fresh(credential: &Credential) -> bool {
    let expiry = credential.fields().get("expiry").and_then(Value::as_u64);
    expiry > Some(now() + MARGIN.as_secs())
}

/// The fields of a credential that are from the provider.
fn fields_of(tokens: Tokens) -> Map<String, Value> {
    Map::from_iter([
        ("access_token".to_owned(), tokens.access_token.into()),
        ("refresh_token".to_owned(), tokens.refresh_token.into()),
        ("expiry".to_owned(), (now() + tokens.expires_in.as_secs()).into()),
    ])
}

/// Sends the refresh token to the provider, and returns the fields that change.
async fn ask(address: String, credential: Credential) -> Result<Map<String, Value>, Refused<Refusal>> {
    let token = credential.fields()["refresh_token"].as_str().unwrap_or_default();
    // Without an answer it is not known whether the token is spent.
    let answer = timeout(Duration::from_secs(30), provider::refresh(&address, token)).await;
    match answer.unwrap_or(Err(Refusal::Lost)) {
        Ok(tokens) => Ok(fields_of(tokens)),
        // Only this answer says that the token is not valid.
        Err(refusal @ Refusal::InvalidGrant) => Err(Refused::Token(refusal)),
        Err(refusal) => Err(Refused::Other(refusal)),
    }
}

/// Returns a credential whose access token can be used.
async fn fresh(storage: &Storage<File>, provider: &Provider) -> Result<Refreshed, RefreshError<Refusal>> {
    let address = provider.address().to_owned();
    storage.refresh_once("alice", &Refresh::default(), is_fresh, |credential| ask(address, credential)).await
}

/// Makes the access token expire now.
async fn expire(storage: &Storage<File>) -> gateway_storage::Result<()> {
    let expire = |mut fields: Map<String, Value>| async {
        fields.insert("expiry".to_owned(), now().into());
        Ok::<_, gateway_storage::Error>(fields)
    };
    storage.update_credential("alice", expire).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (provider, directory) = (Provider::start().await, tempfile::tempdir()?);
    let storage = Storage::<File>::open(directory.path().join("data")).await?;
    storage.set_credential("alice", Credential::new(fields_of(provider.log_in("alice")))?).await?;
    expire(&storage).await?;

    // Both want a fresh token. One asks the provider, and both get the answer.
    let (one, other) = tokio::join!(fresh(&storage, &provider), fresh(&storage, &provider));
    for refreshed in [one?, other?] {
        match refreshed {
            Refreshed::Mine(_) => println!("refreshed"),
            Refreshed::Theirs(_) => println!("got what the other task refreshed"),
            Refreshed::Fresh(_) => println!("was fresh"),
        }
    }
    println!("requests to the provider: {}", provider.total().requests);

    // The owner of the account withdraws the consent. The next refresh finds out, and marks the credential.
    provider.revoke("alice");
    expire(&storage).await?;
    for _ in 0..2 {
        match fresh(&storage, &provider).await {
            Err(RefreshError::Rejected(_)) => println!("rejected: sign in again"),
            other => return Err(format!("the token is revoked, and yet: {:?}", other.is_ok()).into()),
        }
    }
    // The second one read the mark.
    println!("requests to the provider: {}", provider.total().requests);

    // After signing in again, the whole credential is replaced, and the mark is gone.
    storage.set_credential("alice", Credential::new(fields_of(provider.log_in("alice")))?).await?;
    let credential = fresh(&storage, &provider).await?.into_credential();
    println!("signed in again: {}", json!(credential.fields().keys().collect::<Vec<_>>()));
    Ok(())
}
