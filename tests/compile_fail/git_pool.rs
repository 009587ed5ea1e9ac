//~ error[E0277]: `Git` has no connection pool
//~ `File`, `Git` and `Memory` are in this process and have none
use gateway_storage::{Git, Storage};

async fn pool(storage: &Storage<Git>) {
    let _ = storage.pool_stats().await;
}

fn main() {}
