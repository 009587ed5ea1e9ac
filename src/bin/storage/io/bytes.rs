//! Export files, stdin and stdout as the async readers and writers of the library.

use std::{
    fs::File,
    io::{self, Read, stdin},
    os::unix::fs::{FileExt, MetadataExt},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

use crate::term::progress::Bar;

/// Bytes per read of stdin.
const PAGE: usize = 64 * 1024;

/// Reads a file from its beginning. Each clone has a position of its own.
///
/// Reads block, because files rarely do for long.
#[derive(Clone)]
pub(crate) struct FileReader {
    file: Arc<File>,
    at: u64,
}

impl FileReader {
    pub(crate) fn new(file: File) -> Self {
        Self { file: Arc::new(file), at: 0 }
    }

    /// The length now.
    pub(crate) fn length(&self) -> Option<u64> {
        Some(self.file.metadata().ok()?.len())
    }

    /// Identifies the file and its version: it differs after a change.
    pub(crate) fn identity(&self) -> io::Result<String> {
        let found = self.file.metadata()?;
        let (device, inode, size) = (found.dev(), found.ino(), found.len());
        Ok(format!("file {device}:{inode} {size} {}.{:09}", found.ctime(), found.ctime_nsec()))
    }
}

impl Read for FileReader {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(room, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// A reader with a progress bar.
pub(crate) struct WithProgress<R> {
    from: R,
    read: u64,
    bar: Bar,
}

impl<R> WithProgress<R> {
    pub(crate) const fn new(from: R, bar: Bar) -> Self {
        Self { from, read: 0, bar }
    }

    fn advance(&mut self, by: usize) {
        self.read += by as u64;
        self.bar.at(self.read, self.read);
    }
}

impl<R: Read> Read for WithProgress<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(room)?;
        self.advance(read);
        Ok(read)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for WithProgress<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = room.filled().len();
        ready!(Pin::new(&mut self.from).poll_read(context, room))?;
        self.advance(room.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for FileReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.read(room.initialize_unfilled())?;
        room.advance(read);
        Poll::Ready(Ok(()))
    }
}

/// Stdin, read by a thread: a pipe can block, and the process can end without waiting for the thread.
pub(crate) struct StdinReader {
    pages: mpsc::Receiver<io::Result<Vec<u8>>>,
    page: Vec<u8>,
    at: usize,
}

impl StdinReader {
    pub(crate) fn new() -> Self {
        let (sender, pages) = mpsc::channel(4);
        thread::spawn(move || {
            let mut from = stdin().lock();
            loop {
                let mut page = vec![0; PAGE];
                let read = from.read(&mut page).map(|read| {
                    page.truncate(read);
                    page
                });
                let is_last = !matches!(&read, Ok(page) if !page.is_empty());
                if sender.blocking_send(read).is_err() || is_last {
                    break;
                }
            }
        });
        Self { pages, page: Vec::new(), at: 0 }
    }

    /// The next bytes, without consuming them.
    pub(crate) async fn peek(&mut self) -> io::Result<&[u8]> {
        if self.at == self.page.len() {
            (self.page, self.at) = (self.pages.recv().await.unwrap_or(Ok(Vec::new()))?, 0);
        }
        Ok(&self.page[self.at..])
    }

    /// Reads to the end, or past the limit.
    pub(crate) async fn read_all(mut self, limit: u64) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while !self.peek().await?.is_empty() && all.len() as u64 <= limit {
            all.extend_from_slice(&self.page[self.at..]);
            self.at = self.page.len();
        }
        Ok(all)
    }
}

impl AsyncRead for StdinReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at == self.page.len() {
            let page = ready!(self.pages.poll_recv(context));
            (self.page, self.at) = (page.unwrap_or(Ok(Vec::new()))?, 0);
        }
        let length = room.remaining().min(self.page.len() - self.at);
        let at = self.at;
        room.put_slice(&self.page[at..at + length]);
        self.at += length;
        Poll::Ready(Ok(()))
    }
}

/// An async writer over a blocking one.
pub(crate) struct BlockingWriter<W> {
    to: W,
    /// The error that ended writing.
    pub(crate) failed: Option<io::Error>,
}

impl<W: io::Write> BlockingWriter<W> {
    pub(crate) const fn new(to: W) -> Self {
        Self { to, failed: None }
    }

    /// Keeps the error of a result.
    fn keep_error<T>(&mut self, result: io::Result<T>) -> Poll<io::Result<T>> {
        Poll::Ready(result.map_err(|error| {
            let copy = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            self.failed = Some(error);
            copy
        }))
    }
}

impl<W: io::Write + Unpin> tokio::io::AsyncWrite for BlockingWriter<W> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.to.write(bytes);
        self.keep_error(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.to.flush();
        self.keep_error(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
