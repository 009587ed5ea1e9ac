//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{Count, File, Storage, Trace};

async fn cache(storage: Storage<File>) {
    let storage = storage.layer(Trace).layer(Count::default()).layer(Trace);
    let _ = storage.get_cache("k").await;
}

fn main() {}
