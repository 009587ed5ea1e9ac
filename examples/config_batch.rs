//! Releases a configuration as a plan, which is applied once even if it is repeated, and rolls it back.
//!
//!     cargo run --example config_batch

use futures_util::TryStreamExt;
use gateway_storage::{
    ConfigBatch, ErrorKind, Memory, Storage,
    plan::{Applied, ApplyOptions, AuditFilter, Expect, Mutation, Plan, Rollback, RollbackOptions},
};
use serde_json::json;

/// Works on every backend that has config batches.
async fn release<B: ConfigBatch>(storage: &Storage<B>) -> gateway_storage::Result<()> {
    storage.set_config("retries", json!(2)).await?;
    let (retries, models) = ("retries".try_into()?, "models".try_into()?);
    let plan = Plan::new([
        // Another operator may change it meanwhile: this plan applies only if the value is still 2.
        Mutation::set(&retries, &json!(3).try_into()?).expecting(Expect::Value(json!(2).try_into()?)),
        Mutation::set(&models, &json!(["gemini-2.5-pro"]).try_into()?),
    ])?;
    let options = ApplyOptions::default().with_stage("canary").with_source("alice");

    let applied = storage.apply_plan("release-42", &plan, &options).await?;
    assert_eq!(applied, Applied::Applied);
    println!("release-42: {applied:?}, retries are {}", storage.get_config("retries").await?.to_json());

    // If the reply is lost, apply the plan again under the same key.
    println!("release-42 again: {:?}", storage.apply_plan("release-42", &plan, &options).await?);

    // A second operator's plan expects the old value.
    let error = storage.apply_plan("release-43", &plan, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    println!("release-43: {error} (the value of `{}`)", error.key().map_or("?", |key| key.as_str()));

    match storage.rollback_plan("release-42", &RollbackOptions::default().with_source("bob")).await? {
        Rollback::Refused { changed } => println!("{} values were changed since", changed.len()),
        done => {
            println!("release-42: {done:?}, retries are {}", storage.get_config("retries").await?.to_json())
        }
    }

    let audit: Vec<_> = storage.audit_plans(AuditFilter::default()).try_collect().await?;
    for entry in &audit {
        let source = entry.source.as_deref().unwrap_or("-");
        println!("{} {} {} by {source}", entry.key.as_str(), entry.action, entry.status);
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> gateway_storage::Result<()> {
    let storage = Storage::<Memory>::open("memory:").await?;
    release(&storage).await?;
    storage.close().await
}
