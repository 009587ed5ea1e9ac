//! Prints the progress on a terminal, and a table at the end.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    io::{IsTerminal, Write, stderr, stdout},
    time::{Duration, Instant},
};

use gateway_storage::{UsageStore, lease::Leases, revision::Conditional};

use crate::{
    served::{FIELDS, Served},
    traffic::Traffic,
};

/// Prints to stdout, and ignores a closed pipe (`| head`).
pub(crate) fn print(text: &str) {
    let _ = stdout().write_all(text.as_bytes());
}

/// Shows the progress on a terminal until it is dropped.
pub(crate) async fn show_progress<B: Conditional + Leases + UsageStore>(traffic: &Traffic<B>) -> Infallible {
    let started = Instant::now();
    while stderr().is_terminal() {
        let (finished, of) = traffic.progress();
        let (percent, rate) = (100 * finished / of, rate(finished, started.elapsed()));
        eprint!("\r{} of {} requests, {percent} %, {rate}/s   ", thousands(finished), thousands(of));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    std::future::pending().await
}

pub(crate) fn clear_progress() {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:24}{:>14}{:>18}{:>20}",
            "answered", "requests", "prompt tokens", "completion tokens"
        )?;
        let mut records: BTreeMap<&str, [i64; FIELDS.len()]> = BTreeMap::new();
        for ((record, field), count) in &self.counted {
            if let Some(column) = FIELDS.iter().position(|name| name == field) {
                records.entry(record.as_str()).or_default()[column] = *count;
            }
        }
        let models =
            records.iter().filter_map(|(record, counts)| Some((record.strip_prefix("model:")?, counts)));
        let total = records.get("total").map(|counts| ("total", counts));
        for (name, counts) in models.chain(total) {
            let [requests, prompt, completion] = counts.map(|count| thousands(count.unsigned_abs()));
            writeln!(f, "  {name:22}{requests:>14}{prompt:>18}{completion:>20}")?;
        }

        writeln!(f, "\n{:24}{:>14}{:>10}{:>10}{:>10}", "latency", "p50", "p90", "p99", "max")?;
        for (name, latencies) in [("storage, per request", &self.on_storage), ("whole request", &self.whole)]
        {
            let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| percentile(latencies, percent));
            writeln!(f, "  {name:22}{p50:>14}{p90:>10}{p99:>10}{max:>10}")?;
        }

        let seconds = format!("{:.2} s", self.elapsed.as_secs_f64());
        writeln!(f)?;
        writeln!(f, "{:24}{:>14} requests/s, {seconds}", "throughput", rate(self.answered, self.elapsed))?;
        writeln!(f, "{:24}{:>14}", "counter increments", thousands(self.increments))?;
        writeln!(f, "{:24}{:>14}", "upstream retries", thousands(self.retries))?;
        writeln!(f, "{:24}{:>14}", "refused by upstream", thousands(self.refused))?;
        writeln!(f, "{:24}{:>14}", "token refreshes", thousands(self.refreshes))?;
        let seen = thousands(self.revisions.len() as u64);
        writeln!(f, "{:24}{seen:>14} of {}", "config versions seen", thousands(self.changes))?;
        writeln!(f, "{:24}{:>14}", "failed by the storage", thousands(self.errors))?;
        match &self.an_error {
            None => Ok(()),
            Some(error) => {
                writeln!(f, "{:24}{:>14}", "  outcome unknown", thousands(self.unknown))?;
                writeln!(f, "  for example: {error:?}")
            }
        }
    }
}

/// The latency at this percentile of a sorted list.
fn percentile(sorted: &[Duration], percent: usize) -> String {
    let rank = (sorted.len() * percent).div_ceil(100);
    match rank.checked_sub(1) {
        None => "-".into(),
        Some(index) => format!("{:.2} ms", sorted[index].as_secs_f64() * 1000.0),
    }
}

fn rate(count: u64, elapsed: Duration) -> String {
    thousands((count as f64 / elapsed.as_secs_f64().max(0.001)) as u64)
}

/// `1234567` as `1,234,567`
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
