//~ error[E0277]: `Postgres` cannot cache
//~ backends that cache: `Memory`, `Redis`
use gateway_storage::{CacheStore, Count, Postgres, Storage, Trace};

fn needs<B: CacheStore>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<Postgres>| needs(&storage.layer(Trace).layer(Count::default()).layer(Trace));
}
