//! How a state in memory is exported.

use futures_core::Stream;
use futures_util::{StreamExt, future, stream};

use crate::{Record, Result};

/// All records of a state, or why there is none.
pub(super) fn stream_of(
    records: Result<impl Iterator<Item = Record> + Send>,
) -> impl Stream<Item = Result<Record>> + Send {
    match records {
        Ok(records) => stream::iter(records.map(Ok)).left_stream(),
        Err(error) => stream::once(future::ready(Err(error))).right_stream(),
    }
}
