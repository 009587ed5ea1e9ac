//! [`read`] and [`check`]: from an export file to a stream of records.

use std::{future::poll_fn, io, pin::Pin};

use futures_core::Stream;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    Error, Record, Result,
    archive::{Contents, MAX_LINE_BYTES},
    codec::Decoder,
};

/// How much is read at once.
const PAGE: usize = 256 * 1024;

/// Reads an export file to its end, and gives what it holds: nothing of it is kept.
///
/// # Errors
///
/// [`Corrupt`](crate::ErrorKind::Corrupt) or [`Unsupported`](crate::ErrorKind::Unsupported), with the number of the line that is to
/// blame; what `input` says.
pub async fn check(input: impl AsyncRead) -> Result<Contents> {
    let mut reader = Reader::new(Box::pin(input));
    while let Some(records) = reader.page().await {
        if let Some(Err(error)) = records.into_iter().next_back() {
            return Err(error);
        }
    }
    reader.decoder.finish()
}

/// Reads an export file as the records of [`Exportable::export`](crate::Exportable::export), a page at a time.
///
/// Each line is checked when it is read, and all of them together at the end: the stream ends with an error then, when its records
/// were taken already. Where that is too late, [`check`] the file first.
///
/// # Errors
///
/// As [`check`]. The stream ends after an error.
pub fn read(input: impl AsyncRead + Send) -> impl Stream<Item = Result<Record>> + Send {
    let pages = stream::unfold(Reader::new(Box::pin(input)), |mut reader| async {
        Some((reader.page().await?, reader))
    });
    pages.map(stream::iter).flatten()
}

struct Reader<R> {
    // On the heap, so that the stream can be moved while it is read.
    input: Pin<Box<R>>,
    decoder: Decoder,
    bytes: Vec<u8>,
    /// Where in `bytes` the line begins that is not whole yet, and how far it is known to have no LF.
    begin: usize,
    searched: usize,
    ended: bool,
}

impl<R: AsyncRead> Reader<R> {
    fn new(input: Pin<Box<R>>) -> Self {
        Self { input, decoder: Decoder::default(), bytes: Vec::new(), begin: 0, searched: 0, ended: false }
    }

    /// The records of some lines. An error is the last of them, and of all.
    async fn page(&mut self) -> Option<Vec<Result<Record>>> {
        let mut records = Vec::new();
        while !self.ended && records.is_empty() {
            if let Err(error) = self.read_on(&mut records).await {
                self.ended = true;
                records.push(Err(error));
            }
        }
        (!records.is_empty()).then_some(records)
    }

    async fn read_on(&mut self, records: &mut Vec<Result<Record>>) -> Result<()> {
        if !self.fill().await? {
            self.ended = true;
            // What is left has no LF.
            let rest = &self.bytes[self.begin..];
            if !rest.is_empty() {
                self.decoder.line(rest)?;
            }
            return self.decoder.finish().map(drop);
        }
        while let Some(length) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + length + 1;
            let record = self.decoder.line(&self.bytes[self.begin..end])?;
            (self.begin, self.searched) = (end, end);
            records.extend(record.map(Ok));
        }
        self.searched = self.bytes.len();
        if self.bytes.len() - self.begin > MAX_LINE_BYTES {
            return Err(self.decoder.endless());
        }
        Ok(())
    }

    /// Reads more, behind the line that is not whole yet. False at the end.
    async fn fill(&mut self) -> Result<bool> {
        self.bytes.drain(..self.begin);
        (self.begin, self.searched) = (0, self.searched - self.begin);
        let kept = self.bytes.len();
        self.bytes.resize(kept + PAGE, 0);
        let mut room = ReadBuf::new(&mut self.bytes[kept..]);
        let read = poll_fn(|context| self.input.as_mut().poll_read(context, &mut room)).await;
        let filled = room.filled().len();
        self.bytes.truncate(kept + filled);
        read.map_err(failed)?;
        Ok(filled > 0)
    }
}

#[cold]
pub(super) fn failed(error: io::Error) -> Error {
    Error::io("the export can't be read", error)
}
