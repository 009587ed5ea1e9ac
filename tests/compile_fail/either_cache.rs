//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{Either, File, Memory, Storage};

async fn cached(storage: Storage<Either<File, Memory>>) {
    let _ = storage.get_cache("models").await;
}

fn main() {}
