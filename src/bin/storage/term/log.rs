//! `-v`: logs operations to stderr.

use std::{
    fmt,
    io::{Write, stderr},
    iter,
    time::Instant,
};

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    Result,
    layer::{Call, Layer, Operation, Receiver},
};

/// A layer that logs every operation if it is enabled, without keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Log(pub(crate) bool);

impl Log {
    pub(crate) fn line(self, what: impl fmt::Display) {
        if self.0 {
            // A closed stderr must not stop the command.
            let _ = writeln!(stderr(), "{what}");
        }
    }
}

impl Layer for Log {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let start = Instant::now();
        let result = call.run(on).await;
        let (name, elapsed) = (C::OPERATION.name, start.elapsed());
        match &result {
            Ok(_) => self.line(format_args!("{name}: ok in {elapsed:.1?}")),
            Err(error) => self.line(format_args!("{name}: {} after {elapsed:.1?}", error.kind())),
        }
        result
    }

    fn around_stream<T: Send, S: Stream<Item = Result<T>> + Send>(
        &self,
        operation: Operation,
        items: S,
    ) -> impl Stream<Item = Result<T>> + Send {
        let (log, name, start) = (*self, operation.name, Instant::now());
        let end = iter::from_fn(move || {
            log.line(format_args!("{name}: ok in {:.1?}", start.elapsed()));
            None
        });
        let items = items.inspect_err(move |error| {
            log.line(format_args!("{name}: {} after {:.1?}", error.kind(), start.elapsed()));
        });
        items.chain(stream::iter(end))
    }
}
