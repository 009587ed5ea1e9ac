//~ error[E0277]: `Memory` has no connection pool
//~ `File`, `Git` and `Memory` are in this process and have none
use gateway_storage::{Memory, Pooled, Storage};

fn needs<B: Pooled>(_: &Storage<B>) {}

async fn pool(storage: &Storage<Memory>) {
    needs(storage);
    let _ = storage.resize_pool(2).await;
}

fn main() {}
