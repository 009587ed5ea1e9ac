//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use std::time::Duration;

use gateway_storage::{File, Storage};

async fn cache(storage: &Storage<File>) {
    let _ = storage.get_cache("k").await;
    let _ = storage.set_cache("k", b"v", Duration::from_secs(1)).await;
}

fn main() {}
