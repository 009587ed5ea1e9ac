//~ error[E0277]: `Git` cannot cache
//~ backends that cache: `Memory`, `Redis`
use std::time::Duration;

use gateway_storage::{Git, Storage};

async fn cache(storage: &Storage<Git>) {
    let _ = storage.set_cache("k", b"v", Duration::from_secs(1)).await;
}

fn main() {}
