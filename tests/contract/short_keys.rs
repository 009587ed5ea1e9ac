//! The kit finds a backend that stores shorter keys than it says.

use gateway_storage::{
    Backend, ConfigStore, Key, Memory, Storage, conformance,
    scope::Scoped,
    wrap::{BackendWrapper, ConfigStoreWrapper, Wrapped},
};

/// Returns this limit for that of the backend inside.
#[derive(Clone)]
struct Says(usize);

impl<B: Backend> BackendWrapper<B> for Says {
    fn max_key_bytes(&self, _: &B) -> usize {
        self.0
    }
}

impl<B: ConfigStore> ConfigStoreWrapper<B> for Says {}

async fn tenant(says: usize) -> Storage<Wrapped<Says, Scoped<Memory>>> {
    let tenant = Storage::<Memory>::open("memory:").await.unwrap().scoped("tenant-7").unwrap();
    Storage::new(Wrapped::new(Says(says), tenant.backend().clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_stores_keys_as_long_as_it_says() {
    let longest = Key::MAX_BYTES - "tenant-7/".len();
    conformance::configs(&tenant(longest).await).await;
    for beyond in [longest + 1, Key::MAX_BYTES] {
        let run = tokio::spawn(async move { conformance::configs(&tenant(beyond).await).await });
        let panic = run.await.unwrap_err().into_panic();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(
            message.contains("a key is never interpreted") && message.contains("invalid_key"),
            "{message}"
        );
    }
}
