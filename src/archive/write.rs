//! [`write`]: from a stream of records to an export file.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
};

use futures_core::Stream;
use futures_util::StreamExt;
use tokio::io::AsyncWrite;

use crate::{
    Error, Record, Result,
    archive::{Contents, Header},
    codec::Encoder,
};

/// How much is written at once.
const PAGE: usize = 256 * 1024;

/// Writes records as an export file. It holds a page of them at a time, whatever their count is.
///
/// `out` is flushed, and is neither synced nor closed.
///
/// # Errors
///
/// That of the stream; [`InvalidValue`](crate::ErrorKind::InvalidValue) if its records are not sorted as an export is; what `out`
/// says. What was written until then is no export: it has no end.
pub async fn write(
    header: &Header,
    records: impl Stream<Item = Result<Record>>,
    out: impl AsyncWrite,
) -> Result<Contents> {
    let (mut records, mut out) = (pin!(records), pin!(out));
    let mut page = Vec::with_capacity(PAGE);
    let mut encoder = Encoder::new(header, &mut page)?;
    while let Some(record) = records.next().await {
        encoder.record(&record?, &mut page)?;
        if page.len() >= PAGE {
            send(out.as_mut(), &page).await?;
            page.clear();
        }
    }
    let contents = encoder.finish(&mut page);
    send(out.as_mut(), &page).await?;
    poll_fn(|context| out.as_mut().poll_flush(context)).await.map_err(failed)?;
    Ok(contents)
}

pub(super) async fn send(mut out: Pin<&mut impl AsyncWrite>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|context| out.as_mut().poll_write(context, bytes)).await.map_err(failed)?;
        if written == 0 {
            return Err(failed(io::ErrorKind::WriteZero.into()));
        }
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cold]
pub(super) fn failed(error: io::Error) -> Error {
    Error::io("the export can't be written", error).with_retryable(false)
}
