//! [`write`]: encodes a stream of records as an export file.

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

/// The number of bytes per write.
const PAGE: usize = 256 * 1024;

/// Writes records as an export file. Buffers one page, whatever the number of records.
///
/// `out` is flushed, and is neither synced nor closed.
///
/// # Errors
///
/// An error of the stream or of `out`; [`InvalidValue`](crate::ErrorKind::InvalidValue) if the records are
/// not sorted as in an export. The file is then incomplete: it lacks the end line, so it is not an export.
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
