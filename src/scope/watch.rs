//! A watch in a scope: its own records only.

use std::future::ready;

use futures_core::Stream;
use futures_util::StreamExt;

use super::Scope;
use crate::{
    Result,
    capability::Watch,
    event::{Event, WatchOptions},
    wrap::WatchWrapper,
};

#[deny(clippy::missing_trait_methods)]
impl<B: Watch> WatchWrapper<B> for Scope {
    fn watch(&self, inner: &B, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        inner.watch(options).filter_map(|event| {
            ready(match event {
                Ok(Event::Changed { kind, key: Some(key), cursor }) => {
                    self.inner(&key).map(|key| Ok(Event::Changed { kind, key: Some(key), cursor }))
                }
                Ok(event) => Some(Ok(event)),
                Err(error) => Some(Err(self.error(error))),
            })
        })
    }
}
