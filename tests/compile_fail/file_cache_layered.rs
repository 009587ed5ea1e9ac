//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{layer::{Count, Timeout}, CacheStore, File, Storage};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<File>| needs(&storage.instrumented().layer(Count::default()).layer(Timeout::default()));
}
