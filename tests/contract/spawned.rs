//! An application that is generic over its backend can spawn its work: the future of every method is `Send`,
//! for every type of key.

use std::{rc::Rc, time::Duration};

use gateway_storage::{
    CacheStore, ConfigBatch, ErrorKind, Increment, Key, Memory, Result, Storage, UsageStore,
    layer::Count,
    lease::{Claim, Holder, Leases},
    plan::{ApplyOptions, Plan, Rollback, RollbackOptions},
    revision::Conditional,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct Token {
    token: String,
}

async fn work<B>(storage: Storage<B>, name: String, key: Key) -> Result<()>
where
    B: Conditional + Leases + ConfigBatch + UsageStore + CacheStore,
{
    tokio::spawn(async move {
        storage.set_credential("a", json!({ "token": "1" })).await?;
        storage.set_credential(&name, json!({ "token": "2" })).await?;
        storage.set_credential(&key, json!({ "token": "3" })).await?;
        for id in [&key, &Key::new("a")?] {
            storage.get_credential(id).await?;
            storage.get_credential(&id).await?;
        }
        for id in ["a", &name, key.as_str()] {
            storage.get_credential(id).await?;
            storage.get_credential(id.to_owned()).await?;
            storage.get_credential(&id.to_owned()).await?;
            let update = |mut token: Token| async {
                tokio::task::yield_now().await;
                token.token.push('!');
                Ok::<_, gateway_storage::Error>(token)
            };
            storage.update_credential_as(id, update).await?;
        }
        assert_eq!(storage.get_credential_as::<Token>(&name).await?.token, "2!");
        storage.set_credentials([("a", json!({})), (&*name, json!({ "token": "2!" }))]).await?.complete()?;
        let pairs = vec![(name.clone(), storage.get_credential("a").await?)];
        storage.set_credentials(&pairs).await?.complete()?;
        storage.set_credentials(&[(key.clone(), storage.get_credential(&key).await?)]).await?.complete()?;
        assert_eq!(storage.get_credentials(&["a", &*name]).await?.complete()?.len(), 2);
        // The iterator is not `Send`, and the call does not keep it.
        let twice = storage.get_credentials((0..2).map({
            let key = Rc::new(&key);
            move |_| *key
        }));
        assert_eq!(twice.await?.complete()?.len(), 1);
        assert_eq!(storage.delete_credentials([&name, &name]).await?.complete()?, 2);
        storage.set_credential(&name, json!({ "token": "2!" })).await?;
        storage.set_credential_as(key.clone(), &Token { token: "4".into() }).await?;
        storage.delete_credential(key.clone()).await?;

        storage.set_config(&name, json!(1)).await?;
        storage.set_config_as(&*name, &2).await?;
        assert_eq!(storage.get_config_as::<i64>(&name).await?, 2);
        assert_eq!(storage.get_config_or(&name, 7).await?, 2);
        assert_eq!(storage.get_config_or("none", 7).await?, 7);
        let misfit = storage.get_config_or(&name, String::new()).await.unwrap_err();
        assert_eq!(misfit.kind(), ErrorKind::InvalidValue, "a value that does not fit is not the default");
        assert_eq!(storage.get_config(&name).await?, json!(2).try_into()?);
        storage.delete_config(&name).await?;
        let plan = Plan::from_json(r#"[{ "set": "k", "value": 1 }]"#)?;
        storage.apply_plan(&name, &plan, &ApplyOptions::default()).await?;
        assert_eq!(storage.rollback_plan(&name, &RollbackOptions::default()).await?, Rollback::RolledBack);

        assert_eq!(storage.increment_usage(&name, "requests", 2).await?, 2);
        assert_eq!(storage.increment_usage(name.as_str(), &Key::new("requests")?, 2).await?, 4);
        assert_eq!(storage.get_usage(&name).await?.len(), 1);
        storage.increment_many(&[(&key, "tokens", 3), (&Key::new("a")?, "tokens", 1)]).await?.complete()?;
        let own = vec![(name.clone(), key.clone(), 1); 2];
        storage.increment_many(&own).await?.complete()?;
        storage.increment_many(&[Increment::new(&key, &key, 1)]).await?.complete()?;
        assert_eq!(storage.get_usage(&name).await?.get(key.as_str()), Some(2));
        assert_eq!(storage.get_usage(&key).await?.get("tokens"), Some(3));
        storage.reset_usage(&name).await?;

        let (holder, ttl) = (Holder::random(), Duration::from_secs(9));
        let Claim::Yours(lease) = storage.wait_for_lease(&name, &holder, ttl, ttl).await? else {
            panic!("no other holder has the lease")
        };
        assert!(matches!(storage.claim_lease(&*name, &Holder::random(), ttl).await?, Claim::Theirs { .. }));
        let kept = tokio::time::timeout(Duration::from_millis(1), storage.keep_lease(&lease, ttl)).await;
        assert!(kept.is_err(), "{kept:?}");
        let lease = storage.renew_lease(&lease, ttl).await?;
        assert_eq!(storage.list_leases().await?.len(), 1);
        storage.release_lease(&lease, Duration::ZERO).await?;

        storage.set_cache(&name, b"v", Duration::from_secs(9)).await?;
        storage.set_cache(&name, vec![1], Duration::from_secs(9)).await?;
        storage.get_cache_entry(&name).await?;
        assert_eq!(storage.get_cache(&name).await?, [1]);
        storage.delete_cache(&name).await
    })
    .await
    .expect("no panic")
}

/// An invalid key or credential is an error of the whole call, and no item is stored.
#[tokio::test]
async fn an_invalid_item_fails_the_batch_before_it_is_sent() {
    let count = Count::default();
    let storage = Storage::<Memory>::open("memory:").await.unwrap().layer(count.clone());
    let good = || ("a", json!({}));
    for (batch, kind) in [
        ([good(), ("", json!({}))], ErrorKind::InvalidKey),
        ([good(), ("b\n", json!({}))], ErrorKind::InvalidKey),
        ([good(), ("b", json!(1))], ErrorKind::InvalidValue),
    ] {
        assert_eq!(storage.set_credentials(batch).await.unwrap_err().kind(), kind);
    }
    assert_eq!(storage.get_credentials(["a", ""]).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(storage.delete_credentials(["a", ""]).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    for batch in [[("a", "n", 1), ("", "n", 1)], [("a", "n", 1), ("a", "\n", 1)]] {
        assert_eq!(storage.increment_many(&batch).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    }
    for operation in ["set_credentials", "get_credentials", "delete_credentials", "increment_many"] {
        assert_eq!(count.of(operation), 0, "{operation}");
    }
}

#[tokio::test]
async fn generic_work_can_be_spawned() {
    let (name, key) = ("b".to_owned(), Key::new("c").unwrap());
    let storage = Storage::<Memory>::open("memory:").await.unwrap();
    work(storage, name.clone(), key.clone()).await.unwrap();
    let layered = Storage::<Memory>::open("memory:").await.unwrap().instrumented();
    work(layered, name, key).await.unwrap();
}
