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

/// How much is read at once, but for longer lines.
const PAGE: usize = 64 * 1024;

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
    /// Room, of which `begin..filled` was read and not decoded; it has no LF before `searched`.
    room: Vec<u8>,
    begin: usize,
    searched: usize,
    filled: usize,
    ended: bool,
}

impl<R: AsyncRead> Reader<R> {
    fn new(input: Pin<Box<R>>) -> Self {
        let (decoder, room) = (Decoder::default(), vec![0; PAGE]);
        Self { input, decoder, room, begin: 0, searched: 0, filled: 0, ended: false }
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
            let rest = &self.room[self.begin..self.filled];
            if !rest.is_empty() {
                self.decoder.line(rest)?;
            }
            return self.decoder.finish().map(drop);
        }
        while let Some(length) = self.room[self.searched..self.filled].iter().position(|byte| *byte == b'\n')
        {
            let end = self.searched + length + 1;
            let record = self.decoder.line(&self.room[self.begin..end])?;
            (self.begin, self.searched) = (end, end);
            records.extend(record.map(Ok));
        }
        self.searched = self.filled;
        if self.filled - self.begin > MAX_LINE_BYTES {
            return Err(self.decoder.endless());
        }
        Ok(())
    }

    /// Reads more, behind the line that is not whole yet. False at the end.
    async fn fill(&mut self) -> Result<bool> {
        self.room.copy_within(self.begin..self.filled, 0);
        self.filled -= self.begin;
        (self.begin, self.searched) = (0, self.searched - self.begin);
        if self.filled == self.room.len() {
            self.room.resize(2 * self.filled, 0);
        }
        let mut free = ReadBuf::new(&mut self.room[self.filled..]);
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
