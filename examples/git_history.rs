//! A configuration under version control: lists who changed a value, and reverts a change.
//!
//!     cargo run --example git_history --features git

use gateway_storage::{Git, History, Key, Storage, history::DocumentKind};
use serde_json::json;

const RETRIES: Key = Key::from_static("retries");

#[tokio::main(flavor = "current_thread")]
async fn main() -> gateway_storage::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("git:{}/settings?author_name=Jo", folder.path().display());
    let storage = Storage::<Git>::open(url).await?;
    storage.set_config(RETRIES, json!(3)).await?;
    storage.set_config(RETRIES, json!(30)).await?;

    let git = storage.backend();
    let history = git.history(DocumentKind::Config, &RETRIES, 10).await?;
    for commit in &history {
        println!("{} by {}", commit.id, commit.author);
    }
    // The second value was a mistake: revert its commit.
    git.revert(history[0].id).await?;
    assert_eq!(storage.get_config(RETRIES).await?.value(), &json!(3));
    println!("`git log -p` in {} shows the same", git.path().display());
    storage.close().await
}
