//! [`Trace`]: one event an operation.

use std::time::Instant;

use crate::{Call, Layer, Receiver, Result};

/// Tells `tracing` of every operation when it ends: its name, duration, batch size and error.
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
}
