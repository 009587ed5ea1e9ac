//! The contract of [`Backend`]: label, health, deadline, close.

use std::time::Duration;

use serde_json::json;

use super::{closed, must, ok, same};
use crate::{Backend, Storage};

/// Asserts the contract of [`Backend`], and **closes the storage**. [`closed`] asserts the contract of a
/// closed one.
///
/// # Panics
///
/// At the first violated bullet.
pub async fn backend<B: Backend>(storage: &Storage<B>) {
    must("label: a plain name, the same in statistics", names(storage.clone())).await;
    must("health: Ok while it can serve", healthy(storage.clone())).await;
    must("set_deadline: other handles keep theirs", deadlines(storage.clone())).await;
    must("close: every handle is closed, and closing again is Ok", closes(storage.clone())).await;
}

async fn names<B: Backend>(storage: Storage<B>) {
    let label = storage.label();
    let plain =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "_.".contains(letter);
    assert!(!label.is_empty() && label.chars().all(plain), "{label:?} is not a plain name");
    let stats = ok("stats", storage.stats().await);
    same("the name in statistics", label, stats.backend);
    same("the name of a clone", label, storage.clone().label());
    same("the name as JSON", &json!(label), &json!(stats)["backend"]);
}

async fn healthy<B: Backend>(storage: Storage<B>) {
    ok("health", storage.health().await);
    same("healthy in statistics", true, ok("stats", storage.stats().await).healthy);
}

async fn deadlines<B: Backend>(storage: Storage<B>) {
    let hasty = storage.with_deadline(Duration::ZERO);
    // These calls may time out, but they must end.
    drop((hasty.health().await, hasty.stats().await));
    ok("health of the other handle", storage.health().await);
    ok("stats of the other handle", storage.stats().await);
    ok("health with a longer deadline again", hasty.with_deadline(Duration::from_secs(30)).health().await);
}

async fn closes<B: Backend>(storage: Storage<B>) {
    let (other, last) = (storage.clone(), storage.clone());
    ok("close", storage.close().await);
    closed::is_closed("health", other.health().await);
    closed::is_closed("stats", other.stats().await);
    closed::is_closed(
        "stats with a deadline of its own",
        other.with_deadline(Duration::from_secs(1)).stats().await,
    );
    ok("close of another handle", other.close().await);
    ok("the third close", last.close().await);
}
