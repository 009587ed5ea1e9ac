//! `storage watch`.

use std::{
    io::{self, ErrorKind, Write, stdout},
    path::Path,
    pin::pin,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, future::select};
use gateway_storage::{
    history::DocumentKind,
    rfc3339_seconds,
    watch::{self, Cursor, Event, WatchOptions},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::sleep;

use super::{Answer, CliBackend, Failure, Run, Session, To};
use crate::term::{
    interrupt::Interrupt,
    output::{Output, say},
};

/// Show which credentials and config values change, until it is ended
#[derive(Args)]
#[command(after_help = "\
Each change is one line: TIME, tab, `changed`, tab, the kind, tab, the key. A line without a key means
that the backend does not know which: any record of this kind may have changed. `resync` means that
changes before it may have been missed; it is the first line, too, unless --from continues an earlier
watch. Values are not shown. A store that can't be reached is tried again until it can.

--output json prints one JSON document per line: the events above with their cursor, and `idle`, which
comes every few seconds and says that nothing was missed.

Ctrl-C, SIGTERM and a reader that closes the pipe end it with exit code 0. The last cursor is then
printed on stderr, unless the reader closed the pipe or the output is JSON. Redis and File have no
cursors that another process can use: there --from begins with `resync`.

Examples:
  storage watch
  storage watch --kinds configs --output json | jq -r 'select(.event == \"changed\") | .key'
  storage watch --kinds configs | while read -r line; do systemctl reload gateway; done
  storage watch --from CURSOR     # also what has changed since an earlier watch ended")]
pub(crate) struct Watch {
    /// Only changes of these kinds
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,..")]
    kinds: Vec<Kind>,
    /// First the changes since this cursor of an earlier watch
    #[arg(long, value_name = "CURSOR")]
    from: Option<Cursor>,
}

/// Named as in `--kinds` of other commands, or as in the output.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "credential")]
    Credentials,
    #[value(alias = "config")]
    Configs,
}

/// How often a watch looks whether the reader of its output is gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl<B: CliBackend + watch::Watch> Run<B> for To<'_, Watch> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        let Self(command, output) = self;
        let storage = session.read().await?;
        let interrupt = Interrupt::listen()?;
        let ended = async { _ = select(pin!(interrupt.wait()), pin!(reader_is_gone())).await };
        let mut events = pin!(storage.watch(command.options()).take_until(ended));
        let (mut last, mut failure) = (None, None);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => match output.event(&event) {
                    Ok(()) => last = Some(event.cursor().clone()),
                    // The reader closed the pipe.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Answer::AlreadyWritten),
                    Err(error) => return Err(Failure::unwritten_file(Path::new("-"), &error)),
                },
                Err(error) => failure = Some(Failure::from(error)),
            }
        }
        if let Some(last) = last.filter(|_| B::KEEPS_CURSORS && *output == Output::Human)
            && (interrupt.is_set() || failure.is_some())
        {
            say(&format!("note: to go on from here, add --from {last}"));
        }
        failure.map_or(Ok(Answer::AlreadyWritten), Err)
    }
}

impl Watch {
    fn options(&self) -> WatchOptions {
        let mut options = WatchOptions::default();
        options.from.clone_from(&self.from);
        let names = |kind| self.kinds.iter().any(|named| DocumentKind::from(*named) == kind);
        options.kind = match (names(DocumentKind::Credential), names(DocumentKind::Config)) {
            (true, false) => Some(DocumentKind::Credential),
            (false, true) => Some(DocumentKind::Config),
            _ => None,
        };
        options
    }
}

impl From<Kind> for DocumentKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Credentials => Self::Credential,
            Kind::Configs => Self::Config,
        }
    }
}

impl Output {
    /// Writes an event. The line is written as a whole, and at once.
    fn event(self, event: &Event) -> io::Result<()> {
        let line = match self {
            Self::Human => line(SystemTime::now(), event),
            Self::Json => Some(serde_json::to_string(event)?),
        };
        line.map_or(Ok(()), |line| stdout().lock().write_all(format!("{line}\n").as_bytes()))
    }
}

/// An event as a line. `None`: it says nothing to an operator.
fn line(now: SystemTime, event: &Event) -> Option<String> {
    let (name, now) = (event.name(), rfc3339_seconds(now));
    match event {
        Event::Changed { kind, key, .. } => {
            let kind = match kind {
                DocumentKind::Credential => "credential",
                DocumentKind::Config => "config",
                _ => "record",
            };
            let key = key.as_ref().map_or_else(String::new, |key| format!("\t{}", key.as_str()));
            Some(format!("{now}\t{name}\t{kind}{key}"))
        }
        Event::Resync { .. } => Some(format!("{now}\t{name}\tchanges before this may have been missed")),
        Event::Idle { .. } => None,
    }
}

/// Ends when the reader of stdout has closed the pipe: without an event nothing is written, and no write
/// fails.
async fn reader_is_gone() {
    let is_gone = || {
        let out = stdout();
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        let polls = poll(&mut polled, Some(&Timespec::default()));
        polls.is_ok_and(|ready| ready > 0) && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    };
    while !is_gone() {
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use gateway_storage::Key;

    use super::*;

    #[test]
    fn a_line_has_no_key_if_any_may_have_changed() {
        let (cursor, kind) = (Cursor::new("x:1").unwrap(), DocumentKind::Config);
        let changed = |key| Event::Changed { kind, key, cursor: cursor.clone() };
        let shown = |event| line(SystemTime::UNIX_EPOCH, &event);
        let key = Some(Key::new("any of them").unwrap());
        let wanted = "1970-01-01T00:00:00Z\tchanged\tconfig\tany of them";
        assert_eq!(shown(changed(key)).as_deref(), Some(wanted));
        assert_eq!(shown(changed(None)).as_deref(), Some("1970-01-01T00:00:00Z\tchanged\tconfig"));
        assert_eq!(shown(Event::Idle { cursor: cursor.clone() }), None);
    }
}
