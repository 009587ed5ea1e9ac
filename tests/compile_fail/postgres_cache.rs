//~ error[E0277]: `Postgres` cannot cache
//~ backends that cache: `Memory`, `Redis`
use std::time::Duration;

use gateway_storage::{Postgres, Storage};

async fn cache(storage: &Storage<Postgres>) {
    let _ = storage.set_cache("k", b"v", Duration::from_secs(1)).await;
}

fn main() {}
