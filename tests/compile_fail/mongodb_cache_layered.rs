//~ error[E0277]: `MongoDb` cannot cache
//~ backends that cache: `Memory`, `Redis`
use gateway_storage::{CacheStore, Count, MongoDb, Storage, Trace};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<MongoDb>| needs(&storage.layer(Trace).layer(Count::default()).layer(Trace));
}
