//! Picks the backend by a URL at run time. Each arm is compiled for its own backend; nothing is boxed.
//!
//!     cargo run --example choose_backend -- memory:
//!     cargo run --example choose_backend -- file:./data

use std::{env, error::Error, process::ExitCode, time::Duration};

use gateway_storage::{CacheStore, ConfigStore, File, Memory, OptionalExt, Result, Storage, UsageStore};
use serde_json::json;

/// The application, generic over the backend. Its bounds name the capabilities that it needs.
///
/// With a bound on `CacheStore` the arm of `File` below does not compile: "`File` cannot cache".
async fn serve<B: ConfigStore + UsageStore>(storage: &Storage<B>) -> Result<()> {
    storage.set_config("default_model", json!("gemini-2.5-flash")).await?;
    let model = storage.get_config("default_model").await?;
    let requests = storage.increment_usage("total", "requests", 1).await?;
    println!("{}: {} requests so far, default model {}", storage.label(), requests, *model);
    Ok(())
}

/// A capability that only some backends have is used in a function of its own, called in their arms.
async fn cache_models<B: CacheStore>(storage: &Storage<B>) -> Result<()> {
    storage.set_cache("models", br#"["gemini-2.5-flash"]"#, Duration::from_secs(60)).await?;
    let cached = storage.get_cache("models").await.optional()?;
    println!("{}: {} bytes cached", storage.label(), cached.map_or(0, |bytes| bytes.len()));
    Ok(())
}

async fn run(url: &str) -> Result<(), Box<dyn Error>> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("file") => {
            let storage = Storage::<File>::open(url).await?;
            serve(&storage).await?;
            storage.close().await?;
        }
        Some("memory") => {
            let storage = Storage::<Memory>::open(url).await?;
            serve(&storage).await?;
            cache_models(&storage).await?;
            storage.close().await?;
        }
        // The URL may contain a password, so the error does not quote it.
        _ => return Err("the URL must begin with `file:` or `memory:`".into()),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let url = env::args().nth(1).unwrap_or_else(|| "memory:".into());
    match run(&url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
