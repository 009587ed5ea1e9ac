//~ error[E0277]: `gateway_storage::File` has no connection pool
//~ `File`, `Git` and `Memory` are in this process and have none
use gateway_storage::{File, Storage};

fn main() {
    let _ = |storage: Storage<File>| storage.instrumented_pool();
}
