//! Every operation at least once, and errors of many kinds, for tests of telemetry and of secrets.

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    Backend, BatchFailure, CacheStore, ConfigBatch, ConfigStore, CredentialStore, Error, ErrorKind,
    Exportable, History, Increment, Key, Pooled, Record, Result, Storage, Transactional, UsageStore,
    history::{CommitId, DocumentKind},
    layer::{Layered, Limit, Retry, Stack, Timeout},
    lease::{Claim, Holder, Leases, MAX_LEASE_TTL},
    list::ListOptions,
    plan::{ApplyOptions, AuditFilter, Plan, Rollback, RollbackOptions},
    refresh::{Refresh, RefreshError, Refused},
    revision::{Condition, Conditional},
    watch::{Event, Watch, WatchOptions},
};
use serde_json::{Map, json};

/// The texts that the application stores.
pub struct Words {
    /// The key of a credential.
    pub id: String,
    /// A field of the credential, and its value.
    pub secret: String,
    /// The key of a config value.
    pub config_key: String,
    /// The config value.
    pub config: String,
    /// The key of a usage record.
    pub usage_key: String,
    /// The field of a counter.
    pub field: String,
    /// The key of a cache entry.
    pub cache_key: String,
    /// The cached value.
    pub cached: Vec<u8>,
}

impl Words {
    /// One text for each kind.
    pub fn new(word: impl Fn(&str) -> String) -> Self {
        Self {
            id: word("id"),
            secret: word("secret"),
            config_key: word("config-key"),
            config: word("config"),
            usage_key: word("usage-key"),
            field: word("field"),
            cache_key: word("cache-key"),
            cached: word("cached").into_bytes(),
        }
    }
}

/// The errors of the workload.
#[derive(Default)]
pub struct Errors(
    /// In the order of the calls.
    pub Vec<Error>,
);

impl Errors {
    /// Adds the error of a call that must fail.
    #[track_caller]
    pub fn of<T>(&mut self, result: Result<T>) {
        self.0.push(result.err().expect("this fails"));
    }

    fn among(&mut self, failures: Vec<BatchFailure>) {
        assert!(!failures.is_empty(), "some items fail");
        self.0.extend(failures.into_iter().map(|failure| failure.error.with_key(&failure.key)));
    }
}

/// The operations of [`CredentialStore`].
pub async fn credentials<B: CredentialStore>(
    on: &Storage<B>,
    words: &Words,
    errors: &mut Errors,
) -> Result<()> {
    let (id, missing) = (Key::new(&words.id)?, Key::new(&format!("{} is missing", words.id))?);
    let fields = json!({ "token": words.secret, (&words.secret): [words.secret] });
    on.set_credential(&id, fields.clone()).await?;
    on.get_credential(&id).await?;
    errors.of(on.get_credential(&missing).await);
    errors.of(on.get_credential_as::<u32>(&id).await);
    errors.of(on
        .set_credential(&id, json!({ "token": words.secret.repeat(2_000_000 / words.secret.len()) }))
        .await);
    errors.of(on.set_credential(&id, json!([words.secret])).await);
    errors.of(on.get_credential(format!("{}\n", words.id)).await);
    assert!(!on.list_credentials().await?.is_empty());
    let many: [(Key, gateway_storage::Credential); 2] =
        [(id.clone(), fields.clone().try_into()?), (missing.clone(), fields.clone().try_into()?)];
    on.set_credentials(&many).await?.complete()?;
    on.delete_credential(&missing).await?;
    errors.of(on.delete_credential(&missing).await);
    let both = [id.clone(), missing.clone()];
    errors.among(on.get_credentials(&both).await?.failures);
    let listed: Vec<_> = on.stream_credentials(ListOptions::default()).try_collect().await?;
    assert!(!listed.is_empty());
    errors.among(on.delete_credentials(&both).await?.failures);
    on.set_credential(&id, fields).await
}

/// The operations of [`ConfigStore`].
pub async fn configs<B: ConfigStore>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    let key = &words.config_key;
    on.set_config(key, json!({ "value": words.config })).await?;
    on.get_config(key).await?;
    errors.of(on.get_config_as::<Vec<u8>>(key).await);
    assert!(!on.list_configs().await?.is_empty());
    on.set_configs([(key, json!({ "value": words.config }))]).await?.complete()?;
    errors.among(on.get_configs([key.as_str(), "missing"]).await?.failures);
    errors.of(on.set_configs([(key, json!([words.config.repeat(2_000_000 / words.config.len())]))]).await);
    let page = ListOptions::default().with_prefix(key).with_after(Key::from_static("-")).with_limit(1);
    assert_eq!(on.stream_configs(page).count().await, 1);
    on.delete_config(key).await?;
    errors.of(on.get_config(key).await);
    errors.of(on.delete_config(key).await);
    on.set_config(key, json!(words.config)).await
}

/// The operations of [`Conditional`].
pub async fn conditional<B: Conditional>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    let (key, id) = (Key::new(&words.config_key)?, Key::new(&format!("{} is new", words.id))?);
    let (_, old) = on.get_config_with_revision(&key).await?;
    let new = on.set_config_if(&key, json!([words.config]), Condition::Unchanged(old)).await?;
    errors.of(on.set_config_if(&key, json!(words.config), Condition::Unchanged(old)).await);
    errors.of(on.set_config_if(&key, json!(words.config), Condition::Absent).await);
    errors.of(on.delete_config_if(&key, old).await);
    on.delete_config_if(&key, new).await?;
    errors.of(on.get_config_with_revision(&key).await);
    let revision = on.set_credential_if(&id, json!({ "token": words.secret }), Condition::Absent).await?;
    errors.of(on.set_credential_if(&id, json!({}), Condition::Unchanged(old)).await);
    on.delete_credential_if(&id, revision).await?;
    errors.of(on.delete_credential_if(&id, revision).await);
    on.set_config(&key, json!(words.config)).await
}

/// The operations of [`Leases`].
pub async fn leases<B: Leases>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    let (name, minute) = (Key::new(&words.id)?, Duration::from_secs(60));
    let [holder, other] = [(); 2].map(|()| Holder::random());
    let Claim::Yours(lease) = on.claim_lease(&name, &holder, minute).await? else {
        panic!("no other holder has the lease")
    };
    assert!(matches!(on.claim_lease(&name, &other, minute).await?, Claim::Theirs { .. }));
    assert!(!on.list_leases().await?.is_empty());
    let lease = on.renew_lease(&lease, minute).await?;
    errors.of(on.claim_lease(&name, &holder, Duration::ZERO).await);
    errors.of(on.renew_lease(&lease, MAX_LEASE_TTL * 2).await);
    errors.of(on.release_lease(&lease, MAX_LEASE_TTL * 2).await);
    on.release_lease(&lease, Duration::ZERO).await?;
    errors.of(on.renew_lease(&lease, minute).await);
    Ok(())
}

/// Refreshes that end in every way.
pub async fn refreshes<B: Conditional + Leases>(
    on: &Storage<B>,
    words: &Words,
    errors: &mut Errors,
) -> Result<()> {
    #[derive(Debug)]
    struct Refuses;
    let id = Key::new(&format!("{} is refreshed", words.id))?;
    let how = Refresh::default().with_rest(Duration::ZERO);
    let text = |error: RefreshError<Refuses>| Error::new(ErrorKind::Internal, format!("{error} {error:?}"));
    let token = |number: u64| format!("{} {number}", words.secret);
    on.set_credential(&id, json!({ "refresh_token": token(0) })).await?;
    let changes = Map::from_iter([("refresh_token".to_owned(), token(1).into())]);
    let refreshed =
        on.refresh_once(&id, &how, |_| false, |_| async { Ok::<_, Refused<Refuses>>(changes) }).await;
    assert!(!format!("{refreshed:?}").contains(&words.secret));
    refreshed.map_err(text)?;
    let fails = |_| async { Err(Refuses.into()) };
    errors.of(on.refresh_once(&id, &how, |_| false, fails).await.map_err(text));
    let large = Map::from_iter([("refresh_token".to_owned(), words.secret.repeat(100_000).into())]);
    let too_large = |_| async { Ok::<_, Refused<Refuses>>(large) };
    errors.of(on.refresh_once(&id, &how, |_| false, too_large).await.map_err(text));
    let other = Key::new(&format!("{} is rejected", words.id))?;
    on.set_credential(&other, json!({ "refresh_token": token(0) })).await?;
    for _ in 0..2 {
        let rejects = |_| async { Err(Refused::Token(Refuses)) };
        errors.of(on.refresh_once(&other, &how, |_| false, rejects).await.map_err(text));
    }
    on.delete_credential(&id).await?;
    on.delete_credential(&other).await
}

/// The operations of [`UsageStore`].
pub async fn usage<B: UsageStore>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    let (key, field) = (Key::new(&words.usage_key)?, Key::new(&words.field)?);
    on.increment_usage(&key, &field, i64::MAX).await?;
    errors.of(on.increment_usage(&key, &field, 1).await);
    let steps = [Increment::new(&key, &field, 1), Increment::new(&key, &field, -1)];
    errors.among(on.increment_many(&steps).await?.failures);
    on.get_usage(&key).await?;
    assert_eq!(on.get_counter(&key, &field).await?, i64::MAX - 1);
    let missing = Key::new(&format!("{} is missing", words.usage_key))?;
    errors.among(on.get_usages([&key, &missing]).await?.failures);
    assert!(!on.increment_within(&key, &field, 1, 5).await?.is_counted());
    on.increment_within(&missing, &field, i64::MIN, 5).await?;
    errors.of(on.increment_within(&missing, &field, -1, 5).await);
    assert_eq!(on.stream_usage(ListOptions::default()).try_collect::<Vec<_>>().await?.len(), 2);
    assert_eq!(on.reset_usage_prefix(&missing).await?, 1);
    assert!(!on.list_usage().await?.is_empty());
    on.reset_usage(&key).await?;
    errors.of(on.reset_usage(&key).await);
    errors.of(on.get_usage(&key).await);
    on.increment_usage(&key, &field, 1).await.map(drop)
}

/// The operations of [`CacheStore`].
pub async fn cache<B: CacheStore>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    let (key, minute) = (&words.cache_key, Duration::from_secs(60));
    on.set_cache(key, &words.cached, minute).await?;
    errors.of(on.set_cache(key, &words.cached, Duration::ZERO).await);
    errors.of(on.set_cache(key, words.cached.repeat(2_000_000 / words.cached.len()), minute).await);
    on.get_cache(key).await?;
    on.get_cache_entry(key).await?;
    on.set_cache_many([(key, words.cached.clone())], minute).await?.complete()?;
    assert!(!on.set_cache_if_absent(key, &words.cached, minute).await?);
    errors.of(on.set_cache_if_absent(key, &words.cached, Duration::ZERO).await);
    let large = words.cached.repeat(2_000_000 / words.cached.len());
    errors.among(on.set_cache_many([(key, large)], minute).await?.failures);
    errors.among(on.get_cache_many([key.as_str(), "missing"]).await?.failures);
    on.delete_cache(key).await?;
    let fails = || async { Err::<Vec<u8>, _>(Error::new(ErrorKind::Internal, "no upstream")) };
    errors.of(on.get_or_cache(key, minute, fails).await);
    errors.of(on.delete_cache(key).await);
    errors.of(on.get_cache(key).await);
    on.set_cache(key, &words.cached, minute).await
}

/// The operations of [`Transactional`], and a conflict.
pub async fn transactions<B: Transactional + ConfigStore>(
    on: &Storage<B>,
    words: &Words,
    errors: &mut Errors,
) -> Result<()> {
    let (id, missing) = (Key::new(&words.id)?, Key::new(&words.cache_key)?);
    let (credential, config) = (json!({ "token": words.secret }), json!(words.config));
    let mut tx = on.begin().await?;
    tx.set_credential(&id, credential.clone()).await?;
    tx.get_credential(&id).await?;
    tx.delete_credential(&id).await?;
    errors.of(tx.get_credential(&id).await);
    tx.set_config(&id, config.clone()).await?;
    tx.get_config(&id).await?;
    tx.delete_config(&id).await?;
    errors.of(tx.delete_config(&missing).await);
    tx.set_credential(&id, credential.clone()).await?;
    tx.commit().await?;
    on.begin().await?.rollback().await?;

    // A conflict.
    let key = Key::new(&words.config_key)?;
    let mut tx = on.begin().await?;
    drop(tx.get_config(&key).await);
    on.set_config(&key, json!([words.config])).await?;
    let lost = match tx.set_config(&key, config).await {
        Ok(()) => tx.commit().await,
        lost => lost,
    };
    errors.of(lost);
    Ok(())
}

/// The operations of [`ConfigBatch`].
pub async fn plans<B: ConfigBatch>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    let text = |changes: serde_json::Value| Plan::from_json(changes.to_string());
    let (key, stored) = (&words.id, Key::new(&words.config_key)?);
    let options = ApplyOptions::default().with_stage(&words.secret).with_source(&words.config);
    let plan = text(json!([{ "set": stored.as_str(), "value": [words.secret] }]))?;
    on.apply_plan(key, &plan, &options).await?;
    on.apply_plan(key, &plan, &options).await?;
    let other = text(json!([{ "set": stored.as_str(), "value": words.secret, "expect": words.config }]))?;
    errors.of(on.apply_plan(key, &other, &options).await);
    errors.of(on.apply_plan(&words.usage_key, &other, &options).await);
    errors.of(on.rollback_plan(&words.cache_key, &RollbackOptions::default()).await);
    let back = on.rollback_plan(key, &RollbackOptions::default().with_source(&words.secret)).await?;
    assert_eq!(back, Rollback::RolledBack);
    errors.of(Plan::from_json(format!("[{{\"set\": \"{0}\", \"{0}\": 1}}]", words.secret)));
    let audit: Vec<_> = on.audit_plans(AuditFilter::default()).try_collect().await?;
    assert!(audit.len() >= 4);
    Ok(())
}

/// The operations of [`Exportable`].
pub async fn exports<B: Exportable>(on: &Storage<B>) -> Result<()> {
    let records: Vec<Record> = on.export().try_collect().await?;
    assert!(!records.is_empty());
    assert!(on.import(stream::iter(records).map(Ok)).await?.is_complete());
    // A reader that stops early.
    assert_eq!(on.export().take(1).count().await, 1);
    Ok(())
}

/// The operations of [`History`].
pub async fn history<B: History + ConfigStore>(
    on: &Storage<B>,
    words: &Words,
    errors: &mut Errors,
) -> Result<()> {
    let (key, kind) = (Key::new(&words.config_key)?, DocumentKind::Config);
    on.set_config(&words.config_key, json!(words.config)).await?;
    let newest = on.backend().history(kind, &key, 9).await?[0].id;
    errors.of(on.backend().history(DocumentKind::Credential, &key, 9).await);
    on.backend().value_at(newest, kind, &key).await?;
    errors.of(on.backend().value_at(CommitId::from([1; 20]), kind, &key).await);
    on.set_config(&words.config_key, json!([words.config])).await?;
    errors.of(on.backend().revert(newest).await);
    on.set_config(&words.config_key, json!(words.config)).await
}

/// The operations of [`Pooled`].
pub async fn pool<B: Pooled>(on: &Storage<B>, errors: &mut Errors) -> Result<()> {
    on.pool_stats().await?;
    on.resize_pool(3).await?;
    errors.of(on.resize_pool(0).await);
    Ok(())
}

/// The name of every operation. The names are stable, because dashboards and alerts use them.
pub const OPERATIONS: [&str; 57] = [
    "apply_plan",
    "audit_plans",
    "begin",
    "claim_lease",
    "close",
    "commit",
    "delete_cache",
    "delete_config",
    "delete_credential",
    "delete_credentials",
    "delete_if",
    "export",
    "get_cache",
    "get_cache_entry",
    "get_cache_many",
    "get_config",
    "get_configs",
    "get_counter",
    "get_credential",
    "get_credentials",
    "get_usage",
    "get_usages",
    "get_with_revision",
    "health",
    "import",
    "increment_many",
    "increment_usage",
    "increment_within",
    "list_configs",
    "list_credentials",
    "list_leases",
    "list_usage",
    "release_lease",
    "renew_lease",
    "reset_usage",
    "reset_usage_prefix",
    "rollback",
    "rollback_plan",
    "set_cache",
    "set_cache_if_absent",
    "set_cache_many",
    "set_config",
    "set_configs",
    "set_credential",
    "set_credentials",
    "set_if",
    "stats",
    "stream_configs",
    "stream_credentials",
    "stream_usage",
    "transaction_delete_config",
    "transaction_delete_credential",
    "transaction_get_config",
    "transaction_get_credential",
    "transaction_set_config",
    "transaction_set_credential",
    "watch",
];

/// A backend under all layers that are meant for production.
pub fn stacked<B: Backend>(storage: Storage<B>) -> Storage<Layered<Stack, B>> {
    stacked_within(storage, Timeout::default())
}

/// The same with another timeout.
pub fn stacked_within<B: Backend>(storage: Storage<B>, timeout: Timeout) -> Storage<Layered<Stack, B>> {
    let stack = Stack::new()
        .limit(Limit::new(64).queue(10_000))
        .retry(Retry::new())
        .timeout(timeout)
        .instrument(storage.backend());
    storage.layer(stack)
}

/// The workload of everything that `Memory` can do, under the full stack.
pub async fn work() {
    let storage = stacked(Storage::<gateway_storage::Memory>::open("memory:").await.unwrap());
    let (words, mut errors) = (Words::new(str::to_owned), Errors::default());
    credentials(&storage, &words, &mut errors).await.unwrap();
    configs(&storage, &words, &mut errors).await.unwrap();
    conditional(&storage, &words, &mut errors).await.unwrap();
    leases(&storage, &words, &mut errors).await.unwrap();
    plans(&storage, &words, &mut errors).await.unwrap();
    usage(&storage, &words, &mut errors).await.unwrap();
    cache(&storage, &words, &mut errors).await.unwrap();
    transactions(&storage, &words, &mut errors).await.unwrap();
    exports(&storage).await.unwrap();
    watches(&storage, &words).await.unwrap();
    end(&storage, &words, &mut errors).await.unwrap();
}

/// A watch, which its reader drops while it waits.
pub async fn watches<B: Watch + ConfigStore>(on: &Storage<B>, words: &Words) -> Result<()> {
    let mut events = pin!(on.watch(WatchOptions::default()));
    assert!(matches!(events.try_next().await?, Some(Event::Resync { .. })));
    on.set_config(&words.config_key, json!(words.config)).await?;
    assert!(matches!(events.try_next().await?, Some(Event::Changed { .. })));
    assert!(futures_util::FutureExt::now_or_never(events.try_next()).is_none());
    on.delete_config(&words.config_key).await
}

/// The last operations: health, statistics, a zero deadline, a dropped call, close, and a call after it.
pub async fn end<B: ConfigStore>(on: &Storage<B>, words: &Words, errors: &mut Errors) -> Result<()> {
    on.health().await?;
    let stats = on.stats().await?;
    assert!(!format!("{stats:?}").is_empty());
    let late = on.with_deadline(Duration::ZERO);
    drop((
        late.get_config(&words.config_key).await,
        late.set_config(&words.config_key, json!(words.config)).await,
    ));
    drop(futures_util::FutureExt::now_or_never(on.set_config(&words.config_key, json!(words.config))));
    on.clone().close().await?;
    errors.of(on.get_config(&words.config_key).await);
    Ok(())
}
