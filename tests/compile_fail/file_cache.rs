//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{CacheStore, File, Storage};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: &Storage<File>| needs(storage);
}
