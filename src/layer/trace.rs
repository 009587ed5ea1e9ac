//! [`Trace`]: one event an operation.

use std::time::Instant;

use futures_core::Stream;
use futures_util::StreamExt;

use crate::{Call, Layer, Operation, Receiver, Result};

/// Tells `tracing` of every operation when it ends: its name, duration, batch size and error. A stream ends when it is
/// dropped, and its batch size is how many items it gave.
///
/// Events are at level DEBUG, errors at WARN ([`NotFound`](crate::ErrorKind::NotFound) is not an error), with the
/// target `gateway_storage`. No key and no value is part of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace;

impl Layer for Trace {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let start = Instant::now();
        let result = call.run(on).await;
        let (operation, elapsed) = (C::OPERATION.name, start.elapsed());
        match &result {
            Err(error) if error.kind() != crate::ErrorKind::NotFound => tracing::warn!(
                target: "gateway_storage", operation, ?elapsed, batch_size = call.batch_size(), error = %error.kind(),
                "operation failed"
            ),
            _ => tracing::debug!(
                target: "gateway_storage", operation, ?elapsed, batch_size = call.batch_size(), "operation"
            ),
        }
        result
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        let mut ended = StreamEnded { operation: operation.name, start: Instant::now(), items: 0 };
        items.inspect(move |item| ended.note(item))
    }
}

/// Dropped with the stream that it counts.
struct StreamEnded {
    operation: &'static str,
    start: Instant,
    items: usize,
}

impl StreamEnded {
    fn note<T>(&mut self, item: &Result<T>) {
        match item {
            Ok(_) => self.items += 1,
            Err(error) => tracing::warn!(
                target: "gateway_storage", operation = self.operation, error = %error.kind(), "operation failed"
            ),
        }
    }
}

impl Drop for StreamEnded {
    fn drop(&mut self) {
        let (operation, elapsed) = (self.operation, self.start.elapsed());
        tracing::debug!(target: "gateway_storage", operation, ?elapsed, batch_size = self.items, "operation");
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use serde_json::json;

    use super::*;
    use crate::{Memory, Storage};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn tells_of_calls_and_streams_and_of_no_secret() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let storage = Storage::<Memory>::open("memory:").await.unwrap().layer(Trace);
        storage.set_credential("sk-id", json!({ "token": "ya29.secret" })).await.unwrap();
        storage.get_config("sk-id").await.unwrap_err();
        assert_eq!(storage.export().count().await, 1);
        storage.clone().close().await.unwrap();
        storage.get_config("sk-id").await.unwrap_err();

        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        for part in [r#"operation="set_credential""#, r#"operation="export""#, "batch_size=1", "error=closed"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(text.matches("WARN").count(), 1, "not found is not an error\n{text}");
        assert!(!text.contains("sk-id") && !text.contains("ya29"), "{text}");
    }
}
