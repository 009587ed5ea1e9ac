//! Lists: records that are written to stdout as they are read.

use std::{
    io::{self, BufWriter, ErrorKind, Write, stdout},
    path::Path,
    pin::pin,
};

use futures_core::Stream;
use futures_util::{FutureExt, StreamExt};
use gateway_storage::{ConfigValue, Credential, Key, Result as StorageResult, UsageRecord};
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Answer, Output},
    text::printable,
};

/// What a list shows of a record beside its key.
pub(crate) trait Row {
    /// The brackets of the JSON document.
    const BRACKETS: [char; 2] = ['{', '}'];

    fn human(&self, key: &str, out: &mut impl Write) -> io::Result<()>;

    /// A member of the JSON document.
    fn json(&self, key: &str, out: &mut impl Write) -> io::Result<()>;
}

/// Nothing: a key in each line.
impl Row for () {
    const BRACKETS: [char; 2] = ['[', ']'];

    fn human(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{key}")
    }

    fn json(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        Ok(serde_json::to_writer(out, key)?)
    }
}

impl Row for ConfigValue {
    fn human(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{key}\t{}", printable(&self.to_json()))
    }

    fn json(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        member(key, self, out)
    }
}

/// With its values.
impl Row for Credential {
    fn human(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{key}\t{}", printable(&serde_json::to_string(self.fields())?))
    }

    fn json(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        member(key, self.fields(), out)
    }
}

/// A counter in each line.
impl Row for UsageRecord {
    fn human(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        self.iter().try_for_each(|(field, count)| writeln!(out, "{key}\t{}\t{count}", field.as_str()))
    }

    fn json(&self, key: &str, out: &mut impl Write) -> io::Result<()> {
        member(key, self, out)
    }
}

fn member(key: &str, value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, key)?;
    out.write_all(b":")?;
    Ok(serde_json::to_writer(out, value)?)
}

impl Output {
    /// Writes a list: each record as soon as it is read. After an error the JSON document has no end, so that
    /// no program takes it for the whole list.
    pub(crate) async fn list<V: Row>(
        self,
        records: impl Stream<Item = StorageResult<(Key, V)>>,
    ) -> Result<Answer, Failure> {
        match self.written(records, BufWriter::new(stdout().lock())).await {
            Ok(()) => Ok(Answer::AlreadyWritten),
            // The reader closed the pipe.
            Err(Ended::Unwritten(error)) if error.kind() == ErrorKind::BrokenPipe => {
                Ok(Answer::AlreadyWritten)
            }
            Err(Ended::Unwritten(error)) => Err(Failure::unwritten_file(Path::new("-"), &error)),
            Err(Ended::Unread(error)) => Err(error.into()),
        }
    }

    async fn written<V: Row>(
        self,
        records: impl Stream<Item = StorageResult<(Key, V)>>,
        mut out: impl Write,
    ) -> Result<(), Ended> {
        let ([begin, end], mut separator) = (V::BRACKETS, "");
        let mut records = pin!(records);
        loop {
            let next = match records.next().now_or_never() {
                Some(next) => next,
                // What is there can be seen while the next page is read.
                None => {
                    out.flush()?;
                    records.next().await
                }
            };
            let Some(record) = next else { break };
            let (key, value) = match record {
                Ok(record) => record,
                Err(error) => {
                    out.flush()?;
                    return Err(Ended::Unread(error));
                }
            };
            match self {
                Self::Human => value.human(key.as_str(), &mut out)?,
                Self::Json => {
                    if separator.is_empty() {
                        write!(out, "{begin}")?;
                    }
                    out.write_all(separator.as_bytes())?;
                    value.json(key.as_str(), &mut out)?;
                }
            }
            separator = ",";
        }
        match (self, separator) {
            (Self::Human, _) => {}
            (Self::Json, "") => writeln!(out, "{begin}{end}")?,
            (Self::Json, _) => writeln!(out, "{end}")?,
        }
        Ok(out.flush()?)
    }
}

/// Why a list ended before its end.
enum Ended {
    Unwritten(io::Error),
    Unread(gateway_storage::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Unwritten(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use futures_util::stream;
    use gateway_storage::{Error, ErrorKind};

    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Rc<RefCell<Vec<u8>>>);

    impl Seen {
        fn text(&self) -> String {
            String::from_utf8(self.0.borrow().clone()).unwrap()
        }
    }

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record(name: &str) -> StorageResult<(Key, ())> {
        Ok((Key::new(name).unwrap(), ()))
    }

    async fn written(output: Output, records: Vec<StorageResult<(Key, ())>>) -> String {
        let seen = Seen::default();
        drop(output.written(stream::iter(records), BufWriter::new(seen.clone())).await);
        seen.text()
    }

    #[tokio::test]
    async fn a_list_that_ends_early_is_no_document() {
        let gone = || Err(Error::new(ErrorKind::Unavailable, "gone"));
        assert_eq!(written(Output::Json, vec![]).await, "[]\n");
        assert_eq!(written(Output::Json, vec![record("a"), record("b")]).await, "[\"a\",\"b\"]\n");
        assert_eq!(written(Output::Json, vec![record("a"), gone()]).await, "[\"a\"");
        assert_eq!(written(Output::Json, vec![gone()]).await, "");
        assert_eq!(written(Output::Human, vec![record("a"), gone()]).await, "a\n");
    }

    #[tokio::test]
    async fn a_record_is_written_before_the_next_page_is_read() {
        let seen = Seen::default();
        let pages = stream::iter(["a", "b"]).then(|name| {
            let seen = seen.clone();
            async move {
                tokio::task::yield_now().await;
                assert_eq!(seen.text(), if name == "a" { "" } else { "a\n" });
                record(name)
            }
        });
        assert!(Output::Human.written(pages, BufWriter::new(seen.clone())).await.is_ok());
        assert_eq!(seen.text(), "a\nb\n");
    }
}
