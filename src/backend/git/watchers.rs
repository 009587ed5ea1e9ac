//! What the thread of a store and its watches share.

use std::sync::Arc;

use tokio::sync::Notify;

use super::LABEL;
use crate::backend::feed::Feed;

/// The watchers of a store.
#[derive(Clone)]
pub(super) struct Watchers {
    pub(super) feed: Feed,
    /// Woken when readers see another commit.
    pub(super) moved: Arc<Notify>,
}

impl Watchers {
    pub(super) fn new() -> Self {
        Self { feed: Feed::new(LABEL), moved: Arc::default() }
    }
}
