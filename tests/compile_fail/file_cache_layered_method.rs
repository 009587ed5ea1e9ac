//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{layer::{Count, Timeout}, File, Storage};

async fn cache(storage: Storage<File>) {
    let storage = storage.instrumented().layer(Count::default()).layer(Timeout::default());
    let _ = storage.get_cache("k").await;
}

fn main() {}
