//! A progress bar for long work, if stderr is a terminal.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use rustix::termios::tcgetwinsize;

use super::{
    log::Log,
    output::say,
    text::{grouped, several, size},
};

/// The unit of the amount.
#[derive(Clone, Copy)]
enum Unit {
    Records,
    Bytes,
}

/// One line, redrawn in place.
pub(crate) struct Bar {
    what: &'static str,
    unit: Unit,
    /// The total, if known.
    total: Option<u64>,
    start: Instant,
    drawn: Option<Instant>,
    is_shown: bool,
}

const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Clears from the cursor to the end of the line.
const CLEAR: &str = "\x1b[K";

impl Bar {
    /// A bar of records, drawn if stderr is a terminal.
    pub(crate) fn new(what: &'static str, total: Option<u64>) -> Self {
        let is_shown = stderr().is_terminal();
        Self { what, unit: Unit::Records, total, start: Instant::now(), drawn: None, is_shown }
    }

    /// A bar of bytes.
    pub(crate) fn of_bytes(what: &'static str, total: Option<u64>) -> Self {
        Self { unit: Unit::Bytes, ..Self::new(what, total) }
    }

    /// Updates the bar: `done` of the total, and the amount of records or bytes.
    pub(crate) fn at(&mut self, done: u64, amount: u64) {
        if self.is_shown && self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
            self.drawn = Some(Instant::now());
            let mut text = line(self.what, done, self.total, (amount, self.unit), self.start.elapsed());
            // A line that wraps could not be redrawn in place.
            if let Ok(size) = tcgetwinsize(stderr()) {
                fit(&mut text, size.ws_col.saturating_sub(1).into());
            }
            let _ = write!(stderr(), "\r{text}{CLEAR}");
        }
    }

    /// Updates the bar with each record; `done` is its position.
    pub(crate) fn over<S: Stream>(mut self, records: S, done: Arc<AtomicU64>) -> impl Stream<Item = S::Item> {
        let mut seen = 0;
        records.inspect(move |_| {
            seen += 1;
            self.at(done.load(Ordering::Relaxed), seen);
        })
    }

    /// Prints a line above the bar; without a bar, only with `-v`.
    pub(crate) fn note(&mut self, log: Log, text: &str) {
        if self.is_shown || log.0 {
            self.clear();
            say(text);
        }
    }

    /// Removes the bar.
    pub(crate) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(stderr(), "\r{CLEAR}");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `copying   42%  421,337 records  52,300/s  0:11 left`
fn line(what: &str, done: u64, total: Option<u64>, (amount, unit): (u64, Unit), elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    let rate = (amount as f64 / seconds) as u64;
    let tail = match unit {
        Unit::Records => format!("{}  {}/s", several(amount, "record"), grouped(rate)),
        Unit::Bytes => format!("{}  {}/s", size(amount), size(rate)),
    };
    match total.filter(|total| *total > 0) {
        // Concurrent writes can add records to the total that was counted.
        Some(total) => {
            let share = (done as f64 / total as f64).min(1.0);
            // The rate of the first moments says little.
            let left = if share > 0.0 && seconds > 0.5 { seconds * (1.0 - share) / share } else { f64::NAN };
            let left = if left.is_finite() { clock(left as u64) } else { "-:--".to_owned() };
            format!("{what}  {:3.0}%  {tail}  {left} left", (share * 100.0).floor())
        }
        None => format!("{what}  {tail}  {}", clock(seconds as u64)),
    }
}

/// Shortens an ASCII line to the width, by whole figures.
fn fit(text: &mut String, room: usize) {
    if text.len() > room {
        let whole = text[..=room].rfind("  ").unwrap_or(room);
        text.truncate(text[..whole].trim_end().len());
    }
}

fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shortened_by_whole_figures() {
        for (room, wanted) in
            [(25, "copying   42%  421 /s  0s"), (24, "copying   42%  421 /s"), (12, "copying"), (3, "cop")]
        {
            let mut text = "copying   42%  421 /s  0s".to_owned();
            fit(&mut text, room);
            assert_eq!(text, wanted, "{room}");
        }
    }

    #[test]
    fn lines_of_a_bar() {
        let ten = Duration::from_secs(10);
        assert_eq!(
            line("copying", 420, Some(1000), (421_337, Unit::Records), ten),
            "copying   42%  421,337 records  42,133/s  0:13 left"
        );
        assert_eq!(
            line("copying", 0, Some(10), (0, Unit::Records), ten),
            "copying    0%  0 records  0/s  -:-- left"
        );
        let start = Duration::from_millis(400);
        assert_eq!(
            line("copying", 9, Some(10), (9, Unit::Records), start),
            "copying   90%  9 records  22/s  -:-- left"
        );
        assert_eq!(
            line("copying", 12, Some(10), (12, Unit::Records), ten),
            "copying  100%  12 records  1/s  0:00 left"
        );
        assert_eq!(
            line("checking", 1 << 30, Some(4 << 30), (1 << 30, Unit::Bytes), ten),
            "checking   25%  1.0 GiB  102.4 MiB/s  0:30 left"
        );
        assert_eq!(
            line("reading", 1, None, (5, Unit::Records), Duration::from_secs(3671)),
            "reading  5 records  0/s  1:01:11"
        );
    }
}
