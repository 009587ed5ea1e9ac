//~ error[E0277]: `B` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{CredentialStore, Storage};

async fn serve<B: CredentialStore>(storage: Storage<B>) {
    let _ = storage.get_cache("k").await;
}

fn main() {}
