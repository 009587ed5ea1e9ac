//~ not all trait items implemented, missing: `get_cache_entry`, `set_cache_if_absent`, `delete_cache`
use std::time::Duration;

use gateway_storage::{CacheStore, File, Key, Result};

#[derive(Clone)]
struct Wrapper(File);

impl CacheStore for Wrapper {
    async fn get_cache(&self, _: &Key) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn set_cache(&self, _: &Key, _: &[u8], _: Duration) -> Result<()> {
        Ok(())
    }
}

fn main() {}
