//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{File, Storage};

async fn cached(storage: &Storage<File>) {
    let _ = storage.scoped("acme").unwrap().get_cache("models").await;
}

fn main() {}
