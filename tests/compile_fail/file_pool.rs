//~ error[E0277]: `gateway_storage::File` has no connection pool
//~ `File`, `Git` and `Memory` are in this process and have none
use gateway_storage::{File, Pooled, Storage};

fn needs<B: Pooled>(_: &Storage<B>) {}

async fn pool(storage: &Storage<File>) {
    needs(storage);
    let _ = storage.pool_stats().await;
}

fn main() {}
