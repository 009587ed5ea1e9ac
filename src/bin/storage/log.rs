//! `-v`: what is done, on stderr.

use std::{
    fmt,
    io::{Write, stderr},
    time::Instant,
};

use gateway_storage::{Call, Layer, Receiver, Result};

/// A layer that tells of every operation, if it is switched on. No key and no value is part of it.
#[derive(Clone, Copy)]
pub(crate) struct Log(pub(crate) bool);

impl Log {
    pub(crate) fn line(self, what: impl fmt::Display) {
        if self.0 {
            // Whoever does not read this does not stop the work.
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
}
