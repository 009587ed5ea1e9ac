//! The capabilities for which the kit has no function: a wrapper that forwards their required operations. It
//! is frozen like the rest.

use std::time::Duration;

use gateway_storage::{
    Backend, Error, ErrorKind, Git, GitOptions, History, Key, PoolStats, Pooled, Record, Result, Storage,
    StorageStats,
    history::{Commit, CommitId, DocumentKind},
};
use serde_json::json;

#[derive(Clone)]
struct Wrapper<B>(B);

impl<B: Backend> Backend for Wrapper<B> {
    fn label(&self) -> &'static str {
        "wrapper"
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.0.set_deadline(deadline);
    }

    async fn health(&self) -> Result<()> {
        self.0.health().await
    }

    async fn stats(&self) -> Result<StorageStats> {
        self.0.stats().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

impl<B: Pooled> Pooled for Wrapper<B> {
    async fn pool_stats(&self) -> Result<PoolStats> {
        self.0.pool_stats().await
    }

    async fn resize_pool(&self, max: u32) -> Result<()> {
        self.0.resize_pool(max).await
    }
}

impl<B: History> History for Wrapper<B> {
    async fn history(&self, kind: DocumentKind, key: &Key, limit: usize) -> Result<Vec<Commit>> {
        self.0.history(kind, key, limit).await
    }

    async fn value_at(&self, commit: CommitId, kind: DocumentKind, key: &Key) -> Result<Record> {
        self.0.value_at(commit, kind, key).await
    }

    async fn revert(&self, commit: CommitId) -> Result<CommitId> {
        self.0.revert(commit).await
    }
}

#[tokio::test]
async fn a_wrapper_forwards_the_history() {
    let directory = tempfile::tempdir().unwrap();
    let git = Storage::<Git>::open(GitOptions::new(directory.path().join("data"))).await.unwrap();
    let (wrapper, key) = (Wrapper(git.backend().clone()), Key::new("a").unwrap());
    for n in [1, 2] {
        git.set_config(&key, json!(n)).await.unwrap();
    }
    let commits = wrapper.history(DocumentKind::Config, &key, 10).await.unwrap();
    assert_eq!(commits.len(), 2);
    let first = wrapper.value_at(commits[1].id, DocumentKind::Config, &key).await.unwrap();
    assert_eq!(first, Record::Config { key: key.clone(), value: json!(1).try_into().unwrap() });
    wrapper.revert(commits[0].id).await.unwrap();
    assert_eq!(git.get_config(&key).await.unwrap().value(), &json!(1));
    let unknown = wrapper.revert(CommitId::from([0; 20])).await.map_err(|error: Error| error.kind());
    assert_eq!(unknown, Err(ErrorKind::NotFound));
    wrapper.close().await.unwrap();
}
