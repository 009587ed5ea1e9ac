//! What is wrong with the remote stops neither a start nor a write.

use std::{fs, time::Duration};

use gateway_storage::{ErrorKind, Git, GitSync, Storage, Versioned};
use serde_json::json;

use crate::{
    git, is_clean,
    shared::{Clones, value},
};

#[tokio::test]
async fn what_a_revert_can_not_read_is_not_sent() {
    let clones = Clones::new();
    let one = clones.open("one").await;
    one.set_config("a", json!(1)).await.unwrap();
    clones.by_hand("config/a.json", "{ broken");
    let fix = clones.by_hand("config/a.json", "5");
    one.backend().pull().await.unwrap();
    assert_eq!(value(&one, "a").await, json!(5));
    let error = one.backend().revert(fix.parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(git(&clones.at("remote.git"), &["rev-parse", "main"]).trim(), fix);
}
