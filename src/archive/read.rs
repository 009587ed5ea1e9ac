//! [`read`] and [`check`]: decode an export file to a stream of records.

use std::{future::poll_fn, io, pin::Pin};

use futures_core::Stream;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    Error, Record, Result,
    archive::{Contents, MAX_LINE_BYTES},
    codec::Decoder,
};

/// The number of bytes per read, unless a line is longer.
const PAGE: usize = 64 * 1024;

/// Checks an export file to its end, and returns a summary of its contents. Keeps no records.
///
/// # Errors
///
/// [`Corrupt`](crate::ErrorKind::Corrupt) or [`Unsupported`](crate::ErrorKind::Unsupported), with the number
/// of the line; any error of `input`.
pub async fn check(input: impl AsyncRead) -> Result<Contents> {
    let mut reader = Reader::new(Box::pin(input));
    while let Some(records) = reader.page().await {
        if let Some(Err(error)) = records.into_iter().next_back() {
            return Err(error);
        }
    }
    reader.decoder.finish()
}

/// Reads an export file as a stream of records, sorted as by
/// [`Exportable::export`](crate::Exportable::export). Reads a page at a time.
///
/// Each line is checked when it is read. The digests are checked at the end of the file, so the stream can
/// return all records and then an error. If that is too late, [`check`] the file first.
///
/// # Errors
///
/// As for [`check`]. The stream ends after an error.
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
    /// A buffer, in which `begin..filled` was read and not decoded; it has no LF before `searched`.
    buffer: Vec<u8>,
    begin: usize,
    searched: usize,
    filled: usize,
    ended: bool,
}

impl<R: AsyncRead> Reader<R> {
    fn new(input: Pin<Box<R>>) -> Self {
        let (decoder, buffer) = (Decoder::default(), vec![0; PAGE]);
        Self { input, decoder, buffer, begin: 0, searched: 0, filled: 0, ended: false }
    }

    /// The records of the next lines, or `None` at the end. An error is the last item of the last page.
    async fn page(&mut self) -> Option<Vec<Result<Record>>> {
        let mut records = Vec::new();
        while !self.ended && records.is_empty() {
            if let Err(error) = self.read_lines(&mut records).await {
                self.ended = true;
                records.push(Err(error));
            }
        }
        (!records.is_empty()).then_some(records)
    }

    async fn read_lines(&mut self, records: &mut Vec<Result<Record>>) -> Result<()> {
        if !self.fill().await? {
            self.ended = true;
            let rest = &self.buffer[self.begin..self.filled];
            if !rest.is_empty() {
                self.decoder.line(rest)?;
            }
            return self.decoder.finish().map(drop);
        }
        while let Some(length) =
            self.buffer[self.searched..self.filled].iter().position(|byte| *byte == b'\n')
        {
            let end = self.searched + length + 1;
            let record = self.decoder.line(&self.buffer[self.begin..end])?;
            (self.begin, self.searched) = (end, end);
            records.extend(record.map(Ok));
        }
        self.searched = self.filled;
        if self.filled - self.begin > MAX_LINE_BYTES {
            return Err(self.decoder.endless());
        }
        Ok(())
    }

    /// Reads more, after the incomplete line. Returns false at the end.
    async fn fill(&mut self) -> Result<bool> {
        self.buffer.copy_within(self.begin..self.filled, 0);
        self.filled -= self.begin;
        (self.begin, self.searched) = (0, self.searched - self.begin);
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        let mut free = ReadBuf::new(&mut self.buffer[self.filled..]);
        let read = poll_fn(|context| self.input.as_mut().poll_read(context, &mut free)).await;
        let count = free.filled().len();
        self.filled += count;
        read.map_err(failed)?;
        Ok(count > 0)
    }
}

#[cold]
pub(super) fn failed(error: io::Error) -> Error {
    Error::io("the export can't be read", error)
}
