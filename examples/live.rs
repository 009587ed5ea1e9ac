//! Limits of a gateway that follow the store: a change by one process reaches all others.
//!
//!     cargo run --example live                                             # in the directory ./data
//!     cargo run --example live --features full -- redis://localhost/9      # on any backend
//!
//! Change them meanwhile in another terminal:
//!
//!     export STORAGE_URL=file:./data
//!     storage config set limits.requests 20
//!     storage config set limits.models '["gemini-2.5-pro"]'
//!     storage config set limits.requests '"many"'     # wrong: the last limits stay
//!     storage config delete limits.requests           # the default again

use std::{env, error::Error};

use gateway_storage::{Storage, one_of, watch::Live};
use serde::Deserialize;

#[cfg(not(feature = "full"))]
type Backend = one_of!(gateway_storage::File, gateway_storage::Memory);
#[cfg(feature = "full")]
type Backend = one_of!(
    gateway_storage::File,
    gateway_storage::Git,
    gateway_storage::Memory,
    gateway_storage::MongoDb,
    gateway_storage::Postgres,
    gateway_storage::Redis
);

/// All config values under `limits.`: the field `requests` is the value of `limits.requests`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Limits {
    requests: u32,
    models: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 10, models: vec!["gemini-2.5-flash".to_owned()] }
    }
}

/// What each request asks. It takes no lock, reads nothing from the store and parses nothing.
fn is_allowed(limits: &Live<Limits>, running: u32, model: &str) -> bool {
    let limits = limits.get();
    running < limits.requests && limits.models.iter().any(|allowed| allowed == model)
}

fn show(limits: &Live<Limits>) {
    println!("{:?}", *limits.get());
    let answer = if is_allowed(limits, 15, "gemini-2.5-pro") { "served" } else { "refused" };
    println!("a request for gemini-2.5-pro beside 15 others would be {answer}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).unwrap_or_else(|| "file:./data".to_owned());
    let storage = Storage::<Backend>::open(url).await?;
    // A wrong value that is stored already is an error here: there is no earlier one to keep.
    let mut limits = storage.live_configs::<Limits>("limits.").await?;
    show(&limits);
    // Until Ctrl-C, or until the watch can't go on.
    loop {
        limits.changed().await?;
        match limits.problem() {
            None => show(&limits),
            Some(problem) => {
                let field = problem.path().unwrap_or_default();
                println!("the last limits stay, because of `limits.{field}`: {problem}");
            }
        }
    }
}
