//! The watch of the handle, which counts its events.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_core::Stream;
use futures_util::TryStreamExt;
use metrics::SharedString;

use crate::{
    Result, Storage,
    capability::Watch,
    event::{Event, WatchOptions},
    layer::system_name,
};

/// What changes. See [`Watch`].
impl<B> Storage<B> {
    /// Streams which credentials and config values change. See [`Watch::watch`].
    ///
    /// Each event is counted in the metric `gateway_storage.watch.events`, and sets
    /// `gateway_storage.watch.last_event` to the time: see [`watch`](crate::watch).
    ///
    /// ```
    /// use futures_util::TryStreamExt;
    /// use gateway_storage::{Memory, Storage, watch::{Event, WatchOptions}};
    /// use serde_json::json;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> gateway_storage::Result<()> {
    /// let storage = Storage::<Memory>::open("memory:").await?;
    /// let mut changes = std::pin::pin!(storage.watch(WatchOptions::default()));
    /// assert!(matches!(changes.try_next().await?, Some(Event::Resync { .. })));
    /// storage.set_config("retries", json!(3)).await?;
    /// let Some(Event::Changed { key: Some(key), .. }) = changes.try_next().await? else { panic!() };
    /// assert_eq!(key.as_str(), "retries");
    /// # Ok(()) }
    /// ```
    pub fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send
    where
        B: Watch,
    {
        let system = system_name(self.backend.label());
        self.backend.watch(options).inspect_ok(move |event| count(system, event))
    }
}

fn count(system: &'static str, event: &Event) {
    let system = SharedString::const_str(system);
    metrics::counter!(
        "gateway_storage.watch.events",
        "db.system.name" => system.clone(),
        "gateway_storage.watch.event" => event.name(),
    )
    .increment(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics::gauge!("gateway_storage.watch.last_event", "db.system.name" => system).set(now.as_secs_f64());
}
