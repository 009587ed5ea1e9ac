//! Redis as a cache in front of a slow provider.
//!
//!     cargo run --example redis_cache --features redis
//!
//! It needs a `redis-server` on this machine, or the URL of another server in `REDIS_URL`.

use std::time::{Duration, Instant};

use gateway_storage::{CacheStore, OptionalExt, Redis, Result, Storage};

const TTL: Duration = Duration::from_millis(500);

/// The list of models: from the cache, or from the provider once the cached list has expired.
async fn models<B: CacheStore>(cache: &Storage<B>) -> Result<Vec<u8>> {
    if let Some(cached) = cache.get_cache("models").await.optional()? {
        return Ok(cached);
    }
    let models = ask_the_provider().await;
    cache.set_cache("models", &models, TTL).await?;
    Ok(models)
}

async fn ask_the_provider() -> Vec<u8> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    br#"["pro","flash"]"#.to_vec()
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://localhost/0?prefix=example:".to_owned());
    let cache = Storage::<Redis>::open(url).await?;
    for (pause, what) in [(0, "first"), (0, "cached"), (600, "expired")] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let begun = Instant::now();
        let models = models(&cache).await?;
        println!("{what}: {} in {:.0?}", String::from_utf8_lossy(&models), begun.elapsed());
    }
    println!("{:?}", cache.pool_stats().await?);
    cache.close().await
}
