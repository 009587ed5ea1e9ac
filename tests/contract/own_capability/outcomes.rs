//! The outcome of a late operation depends on its attributes, not on its name.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use gateway_storage::{
    Backend, ErrorKind, Outcome, Result, Storage, StorageStats, capability,
    layer::{LayeredTransaction, Retry, Timeout},
};

/// A backend whose operations are applied, but answer only after the timeout. It records which were applied.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<&'static str>>>);

impl Slow {
    /// Applies the operation, then waits for an hour.
    async fn late(&self, what: &'static str) -> Result<()> {
        self.0.lock().unwrap().push(what);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(())
    }
}

impl Backend for Slow {
    fn label(&self) -> &'static str {
        "slow"
    }

    fn set_deadline(&mut self, _: Duration) {}

    async fn health(&self) -> Result<()> {
        self.late("health").await
    }

    async fn stats(&self) -> Result<StorageStats> {
        Ok(StorageStats::new("slow"))
    }

    async fn close(&self) -> Result<()> {
        self.late("close").await
    }
}

/// Operations with names that the library does not know: layers must decide by their attributes.
#[capability]
trait Keys: Backend {
    #[layered(LayeredTransaction)]
    type Edition: Edition;

    #[operation(control)]
    fn rotate_keys(&self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn look(&self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn edition(&self) -> impl Future<Output = Result<Self::Edition>> + Send;
}

#[capability(on = LayeredTransaction)]
trait Edition: Send + 'static {
    #[operation(write)]
    fn append(&mut self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control)]
    fn sign(&mut self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control)]
    fn publish(self) -> impl Future<Output = Result<()>> + Send;

    #[operation(write)]
    fn publish_as_write(self) -> impl Future<Output = Result<()>> + Send;

    #[operation(control, harmless)]
    fn discard(self) -> impl Future<Output = Result<()>> + Send;
}

impl Keys for Slow {
    type Edition = Self;

    async fn rotate_keys(&self) -> Result<()> {
        self.late("rotate_keys").await
    }

    async fn look(&self) -> Result<()> {
        self.late("look").await
    }

    async fn edition(&self) -> Result<Self> {
        Ok(self.clone())
    }
}

impl Edition for Slow {
    async fn append(&mut self) -> Result<()> {
        self.late("append").await
    }

    async fn sign(&mut self) -> Result<()> {
        self.late("sign").await
    }

    async fn publish(self) -> Result<()> {
        self.late("publish").await
    }

    async fn publish_as_write(self) -> Result<()> {
        self.late("publish_as_write").await
    }

    async fn discard(self) -> Result<()> {
        self.late("discard").await
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_has_an_unknown_outcome_unless_the_operation_is_harmless() {
    fn outcome(result: Result<()>) -> Outcome {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        error.outcome()
    }
    let slow = Slow::default();
    let done = |what| slow.0.lock().unwrap().iter().filter(|done| **done == what).count();
    let timeout = Timeout::new(Duration::from_millis(50));
    let storage = Storage::new(slow.clone()).layer(timeout);
    let keys = storage.backend();
    let edition = || keys.edition();
    assert_eq!(outcome(keys.rotate_keys().await), Outcome::Unknown);
    assert_eq!(outcome(edition().await.unwrap().publish().await), Outcome::Unknown);
    assert_eq!(outcome(edition().await.unwrap().publish_as_write().await), Outcome::Unknown);
    assert_eq!(outcome(edition().await.unwrap().sign().await), Outcome::Unknown);
    assert_eq!(outcome(storage.clone().close().await), Outcome::Unknown);
    assert_eq!(outcome(keys.look().await), Outcome::NotApplied);
    assert_eq!(outcome(edition().await.unwrap().append().await), Outcome::NotApplied);
    assert_eq!(outcome(edition().await.unwrap().discard().await), Outcome::NotApplied);
    assert_eq!(outcome(storage.health().await), Outcome::NotApplied);

    let storage = storage.layer(Retry::new());
    let before = done("rotate_keys");
    assert_eq!(outcome(storage.backend().rotate_keys().await), Outcome::Unknown);
    assert_eq!(done("rotate_keys"), before + 1, "its outcome is unknown, so it is not repeated");
    let before = done("look");
    assert_eq!(outcome(storage.backend().look().await), Outcome::NotApplied);
    assert_eq!(done("look"), before + 4);
}
