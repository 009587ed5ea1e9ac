//! Faults of streams.

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use gateway_storage::{Error, Key, Result, list::ListOptions};

use super::{Broken, Fault::*};

impl Broken {
    /// The stream of all records with this fault.
    pub(super) fn spoiled<V: Send, F: Future<Output = bool> + Send>(
        &self,
        options: ListOptions,
        all: impl Stream<Item = Result<(Key, V)>> + Send,
        still_there: impl Fn(Key) -> F + Send + Sync,
    ) -> impl Stream<Item = Result<(Key, V)>> + Send {
        let fault = self.fault;
        stream::once(async move {
            let is_meant = |key: &Key| {
                let (name, prefix) = (key.as_str(), options.prefix.as_str());
                let has_prefix = match fault {
                    StreamIgnoresCase => name.to_lowercase().starts_with(&prefix.to_lowercase()),
                    StreamLimitsFirst => true,
                    _ => name.starts_with(prefix),
                };
                has_prefix
                    && options.after.as_ref().is_none_or(|after| match fault {
                        StreamIncludesAfter => key >= after,
                        _ => key > after,
                    })
            };
            let limit = options.limit.unwrap_or(usize::MAX);
            let all: Vec<(Key, V)> = all.try_collect().await?;
            let mut found: Vec<(Key, V)> =
                all.into_iter().filter(|(key, _)| is_meant(key)).take(limit).collect();
            match fault {
                StreamIsUnsorted => found.reverse(),
                StreamEndsEarly => found.truncate(250),
                StreamLimitsFirst => found.retain(|(key, _)| key.as_str().starts_with(&options.prefix)),
                StreamCountsDeleted => {
                    let mut left = Vec::new();
                    for (at, record) in found.into_iter().enumerate() {
                        if at % 50 == 0 {
                            tokio::task::yield_now().await;
                        }
                        if still_there(record.0.clone()).await {
                            left.push(record);
                        }
                    }
                    found = left;
                }
                _ => {}
            }
            Ok::<_, Error>(stream::iter(found).map(Ok))
        })
        .try_flatten()
    }
}
