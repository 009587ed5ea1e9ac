//~ error[E0277]: `Postgres` cannot cache
//~ backends that cache: `Memory`, `Redis`
use gateway_storage::{layer::{Count, Timeout}, CacheStore, Postgres, Storage};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<Postgres>| needs(&storage.instrumented().layer(Count::default()).layer(Timeout::default()));
}
