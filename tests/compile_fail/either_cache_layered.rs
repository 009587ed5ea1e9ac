//~ error[E0277]: `gateway_storage::File` cannot cache
//~ backends that cache: `Memory`
use gateway_storage::{layer::Count, CacheStore, File, Memory, Storage, one_of};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<one_of!(Memory, Memory, File)>| needs(&storage.layer(Count::default()));
}
