//! `get_or_cache`: one task of a process computes, and the others wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use gateway_storage::{
    CacheStore, Error, ErrorKind, MAX_VALUE_BYTES, Memory, OptionalExt, Storage, layer::Fault,
};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(60);

/// The time that a computation takes.
const TAKES: Duration = Duration::from_secs(1);

async fn memory() -> Storage<Memory> {
    Storage::open("memory:").await.unwrap()
}

/// Counts the computations.
#[derive(Clone, Default)]
struct Upstream(Arc<AtomicUsize>);

impl Upstream {
    async fn compute(self) -> Result<Vec<u8>, Error> {
        let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(TAKES).await;
        Ok(format!("computed {number}").into_bytes())
    }

    async fn fail(self) -> Result<Vec<u8>, Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        sleep(TAKES).await;
        Err(Error::new(ErrorKind::Internal, "no upstream"))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn get<B: CacheStore>(storage: &Storage<B>, key: &str, upstream: &Upstream) -> Result<Vec<u8>, Error> {
    storage.get_or_cache(key, TTL, || upstream.clone().compute()).await
}

#[tokio::test(start_paused = true)]
async fn many_tasks_share_one_computation() {
    let (storage, upstream) = (memory().await, Upstream::default());
    let (begun, clone) = (Instant::now(), storage.clone().with_deadline(Duration::from_millis(10)));
    let calls = (0..50).map(|n| get(if n % 2 == 0 { &storage } else { &clone }, "models", &upstream));
    for value in join_all(calls).await {
        assert_eq!(value.unwrap(), b"computed 1");
    }
    assert_eq!((upstream.count(), begun.elapsed()), (1, TAKES));
    assert_eq!(storage.get_cache("models").await.unwrap(), b"computed 1");
    assert_eq!(get(&storage, "models", &upstream).await.unwrap(), b"computed 1");
    assert_eq!(get(&storage, "other", &upstream).await.unwrap(), b"computed 2");
    tokio::time::advance(TTL).await;
    assert_eq!(get(&storage, "models", &upstream).await.unwrap(), b"computed 3", "it expired");
}

#[tokio::test(start_paused = true)]
async fn a_failed_computation_fails_those_that_waited_and_no_later_ones() {
    let (storage, upstream) = (memory().await, Upstream::default());
    let calls = (0..3).map(|_| storage.get_or_cache("models", TTL, || upstream.clone().fail()));
    let mut errors: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap_err).collect();
    assert_eq!((errors.remove(0).kind(), upstream.count()), (ErrorKind::Internal, 1));
    for error in errors {
        assert_eq!(
            (error.kind(), error.key().map(|key| key.as_str())),
            (ErrorKind::Unavailable, Some("models"))
        );
    }
    assert_eq!(get(&storage, "models", &upstream).await.unwrap(), b"computed 2");
}

#[tokio::test(start_paused = true)]
async fn another_task_computes_when_the_first_is_dropped() {
    let (storage, upstream) = (memory().await, Upstream::default());
    let mut first = Box::pin(get(&storage, "models", &upstream));
    assert!(first.as_mut().now_or_never().is_none());
    let others = join_all((0..3).map(|_| get(&storage, "models", &upstream)));
    let dropped = async {
        sleep(TAKES / 2).await;
        drop(first);
    };
    let (others, ()) = tokio::join!(others, dropped);
    for value in others {
        assert_eq!(value.unwrap(), b"computed 2");
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_value_is_computed_while_the_store_is_away() {
    let (memory, upstream) = (memory().await, Upstream::default());
    let fault = Fault::seeded(1).errors(1.0);
    let away = memory.clone().layer(fault);
    assert_eq!(away.get_cache("models").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(get(&away, "models", &upstream).await.unwrap(), b"computed 1");
    assert_eq!(get(&away, "models", &upstream).await.unwrap(), b"computed 2");
    assert_eq!(memory.get_cache("models").await.optional().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn errors_that_do_not_pass_are_returned() {
    let (storage, upstream) = (memory().await, Upstream::default());
    let zero = storage.get_or_cache("models", Duration::ZERO, || upstream.clone().compute()).await;
    assert_eq!(zero.unwrap_err().kind(), ErrorKind::InvalidValue);
    assert_eq!(get(&storage, "a\nb", &upstream).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(upstream.count(), 0, "before anything is computed");
    let large = || async { Ok::<_, Error>(vec![0; MAX_VALUE_BYTES + 1]) };
    assert_eq!(storage.get_or_cache("models", TTL, large).await.unwrap_err().kind(), ErrorKind::TooLarge);
    storage.clone().close().await.unwrap();
    assert_eq!(get(&storage, "models", &upstream).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn scopes_share_the_computations_of_their_store() {
    let (storage, upstream) = (memory().await, Upstream::default());
    let [acme, globex] = ["acme", "globex"].map(|name| storage.scoped(name).unwrap());
    let (outer, inner, other) = tokio::join!(
        get(&storage, "acme/models", &upstream),
        get(&acme, "models", &upstream),
        get(&globex, "models", &upstream),
    );
    assert_eq!((outer.unwrap(), inner.unwrap()), (b"computed 1".to_vec(), b"computed 1".to_vec()));
    assert_eq!(other.unwrap(), b"computed 2");
}
