//~ error[E0277]: `gateway_storage::File` has no connection pool
//~ backends with one: `Postgres`, `Redis`
use gateway_storage::{File, Storage};

fn main() {
    let _ = |storage: Storage<File>| storage.instrumented_pool();
}
