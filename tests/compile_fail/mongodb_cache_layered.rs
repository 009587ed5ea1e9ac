//~ error[E0277]: `MongoDb` cannot cache
//~ backends that cache: `Memory`, `Redis`
use gateway_storage::{layer::{Count, Timeout}, CacheStore, MongoDb, Storage};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<MongoDb>| needs(&storage.instrumented().layer(Count::default()).layer(Timeout::default()));
}
