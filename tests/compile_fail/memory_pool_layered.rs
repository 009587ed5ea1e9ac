//~ error[E0277]: `Memory` has no connection pool
//~ `File` and `Memory` are in this process and have none
use gateway_storage::{Count, Memory, Storage, Trace};

async fn pool(storage: Storage<Memory>) {
    let _ = storage.layer(Trace).layer(Count::default()).layer(Trace).pool_stats().await;
}

fn main() {}
