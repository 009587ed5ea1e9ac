//~ error[E0277]: `Memory` has no connection pool
//~ `File`, `Git` and `Memory` are in this process and have none
use gateway_storage::{layer::{Count, Timeout}, Memory, Storage};

async fn pool(storage: Storage<Memory>) {
    let _ = storage.instrumented().layer(Count::default()).layer(Timeout::default()).pool_stats().await;
}

fn main() {}
