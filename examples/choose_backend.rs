//! Picks the backend at run time, by a URL or by a JSON map of options. The rest of the program has one type;
//! nothing is boxed.
//!
//!     cargo run --example choose_backend -- memory:
//!     cargo run --example choose_backend -- file:./data
//!     cargo run --example choose_backend -- '{ "backend": "file", "path": "./data", "deadline": "3s" }'

use std::{env, error::Error, process::ExitCode, time::Duration};

use gateway_storage::{
    CacheStore, Either, File, Memory, OptionalExt, Result, Storage, either::EitherOptions,
};
use serde_json::{Value, json};

/// `one_of!(File, Redis, Postgres)` is such a type for more than two.
type AppStorage = Storage<Either<File, Memory>>;

/// The application. It can use the capabilities that both backends have.
///
/// `storage.get_cache(..)` does not compile: "`File` cannot cache".
async fn serve(storage: &AppStorage) -> Result<()> {
    storage.set_config("default_model", json!("gemini-2.5-flash")).await?;
    let model = storage.get_config("default_model").await?;
    let requests = storage.increment_usage("total", "requests", 1).await?;
    println!("{}: {} requests so far, default model {}", storage.label(), requests, *model);
    Ok(())
}

/// A capability that only some backends have is used in a function of its own.
async fn cache_models<B: CacheStore>(storage: &Storage<B>) -> Result<()> {
    storage.set_cache("models", br#"["gemini-2.5-flash"]"#, Duration::from_secs(60)).await?;
    let cached = storage.get_cache("models").await.optional()?;
    println!("{}: {} bytes cached", storage.label(), cached.map_or(0, |bytes| bytes.len()));
    Ok(())
}

async fn run(setting: &str) -> Result<(), Box<dyn Error>> {
    // As in a configuration file: a string is a URL, a map names the backend.
    let setting: Value = serde_json::from_str(setting).unwrap_or_else(|_| setting.into());
    let options: EitherOptions<File, Memory> = serde_json::from_value(setting)?;
    let storage = AppStorage::open(options).await?;
    serve(&storage).await?;
    match storage.backend() {
        Either::Left(_) => println!("{}: no cache", storage.label()),
        Either::Right(memory) => cache_models(&Storage::new(memory.clone())).await?,
    }
    Ok(storage.close().await?)
}

#[tokio::main]
async fn main() -> ExitCode {
    let setting = env::args().nth(1).unwrap_or_else(|| "memory:".into());
    match run(&setting).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
