//! `refresh_once`: one refresh per token, and no new token is lost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use gateway_storage::{
    Credential, Error, ErrorKind, Memory, Storage,
    layer::{Call, Count, Fault, Layer, Receiver},
    lease::Leases,
    refresh::{Refresh, RefreshError, Refreshed, Refused},
    revision::{Conditional, Revision},
    watch::WatchOptions,
};
use serde_json::{Map, Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

type Answer = Result<Map<String, Value>, Refused<Error>>;

/// Gives a new token for the newest one, and counts the uses of older ones.
#[derive(Default)]
struct Provider {
    newest: Mutex<u64>,
    asked: AtomicU64,
    reuses: AtomicU64,
    /// Each answer waits for a permit, if this is set.
    gate: Option<Semaphore>,
}

impl Provider {
    fn gated() -> Arc<Self> {
        Arc::new(Self { gate: Some(Semaphore::new(0)), ..Self::default() })
    }

    fn newest(&self) -> u64 {
        *self.newest.lock().unwrap()
    }

    fn grant(&self, sent: &Credential) -> Answer {
        let mut newest = self.newest.lock().unwrap();
        if sent.fields()["refresh_token"] != *newest {
            self.reuses.fetch_add(1, Ordering::SeqCst);
            return Err(Refused::Token(Error::new(ErrorKind::Denied, "invalid_grant")));
        }
        *newest += 1;
        Ok(Map::from_iter([("refresh_token".into(), (*newest).into())]))
    }

    async fn refresh(self: Arc<Self>, sent: Credential) -> Answer {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.grant(&sent);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        tokio::task::yield_now().await;
        answer
    }

    /// Waits until it was asked this often.
    async fn asked(&self, times: u64) {
        for _ in 0..10_000 {
            if self.asked.load(Ordering::SeqCst) >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the provider is not asked");
    }

    fn answer(&self) {
        self.gate.as_ref().unwrap().add_permits(1);
    }
}

fn refresh_at(
    provider: &Arc<Provider>,
) -> impl FnOnce(Credential) -> BoxFuture<'static, Answer> + Send + use<> {
    let provider = provider.clone();
    |sent| provider.refresh(sent).boxed()
}

/// Refreshes a credential whose token is older than this one.
async fn refresh<B: Conditional + Leases>(
    storage: &Storage<B>,
    provider: &Arc<Provider>,
    how: &Refresh,
    wanted: u64,
) -> Result<Refreshed, RefreshError<Error>> {
    let is_fresh = move |credential: &Credential| {
        credential.fields()["refresh_token"].as_u64().is_some_and(|token| token >= wanted)
    };
    storage.refresh_once("a", how, is_fresh, refresh_at(provider)).await
}

async fn store() -> Storage<Memory> {
    let storage = Storage::<Memory>::open("memory:").await.unwrap();
    storage.set_credential("a", json!({ "refresh_token": 0, "kept": true })).await.unwrap();
    storage
}

/// A handle as another process has it: it shares the store, and not the refreshes that run.
fn process(storage: &Storage<Memory>) -> Storage<Memory> {
    Storage::new(storage.backend().clone())
}

async fn stored(storage: &Storage<Memory>) -> Value {
    Value::Object(storage.get_credential("a").await.unwrap().fields().clone())
}

fn how() -> Refresh {
    Refresh::default()
}

/// Waits at most this many seconds.
fn waiting(seconds: u64) -> Refresh {
    how().with_wait(Duration::from_secs(seconds))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_callers_and_processes_refreshes() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    for round in 1..=20 {
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let process = process(&storage);
            for _ in 0..50 {
                let (process, provider) = (process.clone(), provider.clone());
                callers.spawn(async move { refresh(&process, &provider, &how(), round).await.unwrap() });
            }
        }
        let results = callers.join_all().await;
        let mine = results.iter().filter(|result| matches!(result, Refreshed::Mine(_))).count();
        assert_eq!(mine, 1);
        for result in results {
            assert_eq!(
                result.into_credential(),
                json!({ "refresh_token": round, "kept": true }).try_into().unwrap()
            );
        }
    }
    assert_eq!((provider.newest(), provider.reuses.load(Ordering::SeqCst)), (20, 0));
    assert!(storage.list_leases().await.unwrap().is_empty(), "all are released");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_goes_on_without_its_caller_and_close_waits_for_it() {
    let (storage, provider) = (store().await, Provider::gated());
    let caller = tokio::spawn({
        let (storage, provider) = (storage.clone(), provider.clone());
        async move { refresh(&storage, &provider, &how(), 1).await }
    });
    provider.asked(1).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());

    let joined = tokio::spawn({
        let (storage, provider) = (storage.clone(), provider.clone());
        async move { refresh(&storage, &provider, &how(), 1).await }
    });
    let closed = tokio::spawn({
        let storage = storage.clone();
        async move { storage.close().await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!closed.is_finished());
    let stored = tokio::spawn({
        let storage = process(&storage);
        async move {
            loop {
                // The store is closed as soon as the token is stored, so an error is no failure here.
                match storage.get_credential("a").await {
                    Ok(credential) if credential.fields()["refresh_token"] == 1 => return true,
                    Ok(_) => tokio::task::yield_now().await,
                    Err(_) => return false,
                }
            }
        }
    });
    provider.answer();
    assert!(matches!(joined.await.unwrap(), Ok(Refreshed::Theirs(_))));
    closed.await.unwrap().unwrap();
    assert!(stored.await.unwrap());
    assert_eq!(provider.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn changes_of_others_are_kept() {
    let (storage, provider) = (store().await, Provider::gated());
    let refreshing = |wanted| {
        let (storage, provider) = (storage.clone(), provider.clone());
        tokio::spawn(async move { refresh(&storage, &provider, &how(), wanted).await })
    };
    let running = refreshing(1);
    provider.asked(1).await;
    storage.set_credential("a", json!({ "refresh_token": 0, "quota": 7 })).await.unwrap();
    provider.answer();
    assert!(matches!(running.await.unwrap(), Ok(Refreshed::Mine(_))));
    assert_eq!(stored(&storage).await, json!({ "refresh_token": 1, "quota": 7 }));

    // An operator signs in again during a refresh: the new token stays.
    let running = refreshing(2);
    provider.asked(2).await;
    storage.set_credential("a", json!({ "refresh_token": 1000 })).await.unwrap();
    provider.answer();
    assert!(matches!(running.await.unwrap(), Ok(Refreshed::Theirs(_))));
    assert_eq!(stored(&storage).await, json!({ "refresh_token": 1000 }));

    // A deleted credential does not come back. The caller has the new token.
    storage.set_credential("a", json!({ "refresh_token": 2 })).await.unwrap();
    let running = refreshing(3);
    provider.asked(3).await;
    storage.delete_credential("a").await.unwrap();
    provider.answer();
    let Err(RefreshError::NotStored { credential, error }) = running.await.unwrap() else { panic!() };
    assert_eq!((credential.fields()["refresh_token"].as_u64(), error.kind()), (Some(3), ErrorKind::NotFound));
    assert_eq!(storage.get_credential("a").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_marked_until_there_is_a_new_one() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    *provider.newest.lock().unwrap() = 5;
    let how = how();
    let refresh_to = |wanted| refresh(&storage, &provider, &how, wanted);
    let refresh = || refresh_to(1);
    let Err(RefreshError::Rejected(Some(error))) = refresh().await else { panic!() };
    assert_eq!(error.to_string(), "invalid_grant");
    let mark = Revision::of(b"0").to_string();
    assert_eq!(stored(&storage).await, json!({ "refresh_token": 0, "kept": true, "refresh_rejected": mark }));
    assert!(matches!(refresh().await, Err(RefreshError::Rejected(None))), "the provider is not asked again");
    assert_eq!(provider.asked.load(Ordering::SeqCst), 1);

    // A person signs in by a program that keeps the field.
    let sign_in = |mut fields: Map<String, Value>| async {
        fields.insert("refresh_token".into(), 5.into());
        Ok::<_, Error>(fields)
    };
    storage.update_credential("a", sign_in).await.unwrap();
    assert!(matches!(refresh_to(6).await, Ok(Refreshed::Mine(_))));
    assert_eq!(stored(&storage).await, json!({ "refresh_token": 6, "kept": true }));
}

/// The holder is paused after the provider's answer. Another process sends the spent token and marks the
/// credential. Then the new token arrives after all.
#[tokio::test(start_paused = true)]
async fn a_late_answer_replaces_the_spent_token_and_the_mark() {
    let (storage, provider) = (store().await, Provider::gated());
    let mut how = waiting(100);
    how.longest = Duration::from_secs(40);
    let late = tokio::spawn({
        let (storage, provider, how) = (process(&storage), provider.clone(), how.clone());
        async move { refresh(&storage, &provider, &how, 1).await }
    });
    provider.asked(1).await;
    // The lease is not renewed beyond `longest`, so another process gets it.
    let ungated = Arc::new(Provider { newest: Mutex::new(1), ..Provider::default() });
    let other = refresh(&storage, &ungated, &how, 1).await;
    assert!(matches!(other, Err(RefreshError::Rejected(Some(_)))), "{other:?}");
    assert!(stored(&storage).await["refresh_rejected"].is_string());
    provider.answer();
    assert!(matches!(late.await.unwrap(), Ok(Refreshed::Mine(_))));
    assert_eq!(stored(&storage).await, json!({ "refresh_token": 1, "kept": true }));
}

/// How long a caller of another process waits after the new token was given, by a clock that stands still
/// while something runs.
async fn wait_of_another(is_watched: bool) -> Duration {
    let (storage, provider) = (store().await, Provider::gated());
    let other = process(&storage);
    let mut events = Box::pin(other.watch(WatchOptions::default()));
    if is_watched {
        events.next().await.unwrap().unwrap();
    }
    let first = tokio::spawn({
        let (storage, provider) = (storage.clone(), provider.clone());
        async move { refresh(&storage, &provider, &how(), 1).await }
    });
    provider.asked(1).await;
    let second = tokio::spawn({
        let (other, provider) = (other.clone(), provider.clone());
        async move { refresh(&other, &provider, &how(), 1).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let answered = Instant::now();
    provider.answer();
    let refreshed = second.await.unwrap().unwrap();
    assert!(matches!(refreshed, Refreshed::Theirs(_)), "{refreshed:?}");
    let waited = answered.elapsed();
    first.await.unwrap().unwrap();
    waited
}

#[tokio::test(start_paused = true)]
async fn a_watch_wakes_callers_of_other_processes() {
    assert_eq!(wait_of_another(true).await, Duration::ZERO);
    assert_ne!(wait_of_another(false).await, Duration::ZERO, "without a watch it looks again later");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_followed_by_a_rest_for_all_processes() {
    let storage = store().await;
    let how = waiting(1);
    let fails = |_| async { Err(Error::new(ErrorKind::Unavailable, "503").into()) };
    let never = |_: &Credential| false;
    let failed = storage.refresh_once("a", &how, never, fails).await;
    assert!(matches!(failed, Err(RefreshError::Provider(_))), "{failed:?}");
    let other = process(&storage);
    let resting = other.refresh_once("a", &how, never, fails).await;
    assert!(matches!(resting, Err(RefreshError::Busy)), "{resting:?}");
    tokio::time::advance(how.rest).await;
    let failed = other.refresh_once("a", &how, never, fails).await;
    assert!(matches!(failed, Err(RefreshError::Provider(_))), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_as_an_error_and_the_lease_ends_by_itself() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    let panics = |_: Credential| async { panic!("on purpose") };
    let result = storage.refresh_once::<Error, _>("a", &how(), |_: &Credential| false, panics).await;
    assert!(matches!(result, Err(RefreshError::Panicked)), "{result:?}");
    // Waits for the lease.
    assert!(matches!(refresh(&storage, &provider, &how(), 1).await, Ok(Refreshed::Mine(_))));
}

#[tokio::test(start_paused = true)]
async fn without_a_store_the_provider_is_not_asked() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    let cut = storage.clone().layer(Fault::seeded(1).lost_requests(1.0));
    for _ in 0..100 {
        let result = refresh(&cut, &provider, &how(), 1).await;
        assert!(matches!(result, Err(RefreshError::Store(_))), "{result:?}");
    }
    let missing = storage.refresh_once("b", &how(), |_| false, refresh_at(&provider)).await;
    let Err(RefreshError::Store(error)) = missing else { panic!("{missing:?}") };
    assert_eq!((error.kind(), provider.asked.load(Ordering::SeqCst)), (ErrorKind::NotFound, 0));
}

/// Requests and replies are lost in every phase: each new token is stored all the same.
#[tokio::test(start_paused = true)]
async fn no_new_token_is_lost_when_requests_and_replies_are() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    for seed in 0..300 {
        let fault = Fault::seeded(seed).errors(0.05).lost_requests(0.1).lost_replies(0.1);
        let faulty = process(&storage).layer(fault);
        let wanted = provider.newest() + 1;
        match refresh(&faulty, &provider, &how(), wanted).await {
            Ok(_) | Err(RefreshError::Store(_) | RefreshError::Busy) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
        // A lease whose claim or release was lost ends.
        tokio::time::advance(how().lease).await;
        assert_eq!(
            stored(&storage).await,
            json!({ "refresh_token": provider.newest(), "kept": true }),
            "{seed}"
        );
    }
    assert!(provider.newest() > 50, "{}", provider.newest());
    assert_eq!(provider.reuses.load(Ordering::SeqCst), 0);
}

/// What the store refuses for good is not lost: the caller has it, and the token at least is stored.
#[tokio::test(start_paused = true)]
async fn a_new_token_is_stored_though_the_rest_is_too_large() {
    let storage = store().await;
    let large = |_| async {
        Ok(Map::from_iter([
            ("refresh_token".to_owned(), 1.into()),
            ("id_token".to_owned(), "x".repeat(gateway_storage::MAX_VALUE_BYTES - 40).into()),
        ]))
    };
    let result = storage.refresh_once::<Error, _>("a", &how(), |_| false, large).await;
    let Err(RefreshError::NotStored { credential, error }) = result else { panic!("{result:?}") };
    assert_eq!((credential.fields()["refresh_token"].as_u64(), error.kind()), (Some(1), ErrorKind::TooLarge));
    assert_eq!(stored(&storage).await, json!({ "refresh_token": 1, "kept": true }));
}

/// The provider does not rotate. An answer that comes late does not replace a newer one.
#[tokio::test(start_paused = true)]
async fn a_late_answer_without_a_new_token_replaces_nothing() {
    let storage = store().await;
    let replaced = storage.clone();
    let late = |_| async move {
        let newer = json!({ "refresh_token": 0, "access_token": "newer", "kept": true });
        replaced.set_credential("a", newer).await?;
        Ok(Map::from_iter([("access_token".to_owned(), "older".into())]))
    };
    let result = storage.refresh_once::<Error, _>("a", &how(), |_| false, late).await;
    assert!(matches!(result, Ok(Refreshed::Theirs(_))), "{result:?}");
    assert_eq!(stored(&storage).await["access_token"], "newer");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_fresh_does_not_make_every_caller_refresh() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let (storage, provider) = (storage.clone(), provider.clone());
        callers.spawn(async move {
            storage.refresh_once("a", &how(), |_| false, refresh_at(&provider)).await.unwrap();
        });
    }
    callers.join_all().await;
    assert_eq!(provider.newest(), 1);
    let another = process(&storage).refresh_once("a", &waiting(1), |_| false, refresh_at(&provider)).await;
    assert!(matches!(another, Err(RefreshError::Busy)), "the lease rests: {another:?}");
}

#[tokio::test]
async fn a_credential_without_a_token_is_refused() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    storage.set_credential("a", json!({ "refreshToken": 0 })).await.unwrap();
    let result = storage.refresh_once("a", &how(), |_| false, refresh_at(&provider)).await;
    let Err(RefreshError::Store(error)) = result else { panic!("{result:?}") };
    assert_eq!((error.kind(), error.path()), (ErrorKind::InvalidValue, Some("refresh_token")));
    assert_eq!(provider.asked.load(Ordering::SeqCst), 0);
}

/// The leases can be written, and the credential can't.
#[tokio::test(start_paused = true)]
async fn a_token_is_spent_only_if_the_credential_can_be_written() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    let read_only = storage.clone().layer(ReadOnly);
    let result = refresh(&read_only, &provider, &how(), 1).await;
    let Err(RefreshError::Store(error)) = result else { panic!("{result:?}") };
    assert_eq!((error.kind(), provider.asked.load(Ordering::SeqCst)), (ErrorKind::Denied, 0));
    assert!(storage.list_leases().await.unwrap().is_empty());
}

/// Refuses `set_if`.
#[derive(Clone)]
struct ReadOnly;

impl Layer for ReadOnly {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> gateway_storage::Result<C::Output> {
        if C::OPERATION.name == "set_if" {
            return Err(Error::new(ErrorKind::Denied, "read only"));
        }
        call.run(on).await
    }
}

#[tokio::test]
async fn long_ids_have_leases() {
    let (storage, provider) = (store().await, Arc::new(Provider::default()));
    for id in ["x".repeat(255), "é".repeat(127)] {
        *provider.newest.lock().unwrap() = 0;
        storage.set_credential(&id, json!({ "refresh_token": 0 })).await.unwrap();
        let refreshed = storage.refresh_once(&id, &how(), |_| false, refresh_at(&provider)).await;
        assert!(matches!(refreshed, Ok(Refreshed::Mine(_))), "{refreshed:?}");
    }
}

/// A credential is refreshed through the scope. Meanwhile another process, which has no scope, does not send
/// the token.
async fn is_sent_once<B: Conditional + Leases>(store: &Storage<Memory>, scope: &Storage<B>, prefix: &str) {
    let max = scope.backend().max_key_bytes();
    let lengths =
        [max, max.saturating_sub(4), max.saturating_sub(8)].into_iter().filter(|length| *length > 0);
    let ids = lengths.map(|length| "y".repeat(length)).chain((max > 1).then(|| "é".repeat(max / 2)));
    for id in ids {
        let (whole, provider) = (format!("{prefix}{id}"), Provider::gated());
        scope.set_credential(&id, json!({ "refresh_token": 0 })).await.unwrap();
        let running = tokio::spawn({
            let (scope, provider) = (scope.clone(), provider.clone());
            async move { scope.refresh_once(&id, &how(), |_| false, refresh_at(&provider)).await }
        });
        provider.asked(1).await;
        let other = process(store).refresh_once(&whole, &waiting(1), |_| false, refresh_at(&provider)).await;
        assert!(matches!(other, Err(RefreshError::Busy)), "{whole}: {other:?}");
        provider.answer();
        let refreshed = running.await.unwrap();
        assert!(matches!(refreshed, Ok(Refreshed::Mine(_))), "{whole}: {refreshed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn processes_with_and_without_a_scope_send_a_token_once() {
    let store = store().await;
    for name in ["acme".to_owned(), "é".to_owned(), "x".repeat(244), "x".repeat(250), "x".repeat(253)] {
        let scope = store.scoped(&name).unwrap();
        is_sent_once(&store, &scope, &format!("{name}/")).await;
        if name.len() < 245 {
            is_sent_once(&store, &scope.scoped("eu").unwrap(), &format!("{name}/eu/")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn handles_with_and_without_a_scope_share_a_refresh() {
    let (store, provider) = (Storage::<Memory>::open("memory:").await.unwrap(), Provider::gated());
    let (acme, globex) = (store.scoped("acme").unwrap(), store.scoped("globex").unwrap());
    acme.set_credential("a", json!({ "refresh_token": 0 })).await.unwrap();
    globex.set_credential("a", json!({ "refresh_token": 0, "of": "globex" })).await.unwrap();
    let calls = Count::default();
    let running = tokio::spawn({
        let (acme, provider) = (acme.clone(), provider.clone());
        async move { refresh(&acme, &provider, &how(), 1).await }
    });
    provider.asked(1).await;
    // The handle of another scope has another credential under this id.
    let others = Arc::new(Provider::default());
    let Ok(Refreshed::Mine(other)) = refresh(&globex, &others, &how(), 1).await else { panic!() };
    assert_eq!(other.get("of"), Some(&json!("globex")));

    let joined = tokio::spawn({
        let (store, provider) = (store.clone().layer(calls.clone()), provider.clone());
        let is_fresh = |credential: &Credential| credential.fields()["refresh_token"] == 1;
        async move { store.refresh_once("acme/a", &how(), is_fresh, refresh_at(&provider)).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    provider.answer();
    assert!(matches!(running.await.unwrap(), Ok(Refreshed::Mine(_))));
    assert!(matches!(joined.await.unwrap(), Ok(Refreshed::Theirs(_))));
    assert_eq!(provider.asked.load(Ordering::SeqCst), 1);
    // It waits for the refresh and does not look at the store.
    assert_eq!(calls.all(), BTreeMap::from([("get_credential", 1)]));
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_the_refreshes_of_all_scopes() {
    let (storage, provider) = (store().await, Provider::gated());
    let acme = storage.scoped("acme").unwrap();
    acme.set_credential("a", json!({ "refresh_token": 0 })).await.unwrap();
    let running = tokio::spawn({
        let (acme, provider) = (acme.clone(), provider.clone());
        async move { refresh(&acme, &provider, &how(), 1).await }
    });
    provider.asked(1).await;
    let closed = tokio::spawn(storage.clone().close());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!closed.is_finished());
    // From the close on, no token is spent.
    let globex = storage.scoped("globex").unwrap();
    globex.set_credential("a", json!({ "refresh_token": 0 })).await.unwrap();
    let late = refresh(&globex, &provider, &how(), 1).await;
    assert!(
        matches!(&late, Err(RefreshError::Store(error)) if error.kind() == ErrorKind::Closed),
        "{late:?}"
    );
    provider.answer();
    let refreshed = running.await.unwrap();
    assert!(matches!(refreshed, Ok(Refreshed::Mine(_))), "the new token is stored: {refreshed:?}");
    closed.await.unwrap().unwrap();
    assert_eq!(provider.asked.load(Ordering::SeqCst), 1);
}
