//~ error[E0277]: `MongoDb` cannot cache
//~ backends that cache: `Memory`, `Redis`
use std::time::Duration;

use gateway_storage::{MongoDb, Storage};

async fn cache(storage: &Storage<MongoDb>) {
    let _ = storage.set_cache("k", b"v", Duration::from_secs(1)).await;
}

fn main() {}
