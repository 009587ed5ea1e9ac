//! Reports of copies and comparisons: as a table, and as JSON.

use gateway_storage::{
    Key, RecordKind,
    migrate::{CopyReport, Tally, VerifyReport},
};
use serde_json::{Value, json};

use super::{
    failure::with_causes,
    output::Answer,
    text::{grouped, size},
};

/// How many records the text names. The JSON names all that the report has.
const NAMED: usize = 20;

/// A copy, and the comparison after it, if any.
pub(crate) fn copied(report: &CopyReport, verified: Option<&VerifyReport>) -> Answer {
    let tallies = &report.tallies;
    let written = if report.dry_run { "would write" } else { "written" };
    let mut table = vec![["", "read", written, "unchanged", "skipped", "failed"].map(str::to_owned)];
    let row = |name: &str, tally: &Tally| {
        let Tally { read, written, unchanged, skipped, failed, .. } = *tally;
        let [read, written, unchanged, skipped, failed] =
            [read, written, unchanged, skipped, failed].map(grouped);
        [name.to_owned(), read, written, unchanged, skipped, failed]
    };
    table.extend(RecordKind::ALL.map(|kind| row(plural(kind), tallies.of(kind))));
    let total = tallies.total();
    let seconds = report.elapsed.as_secs_f64();
    let mut lines = aligned(&table);
    let mut summary = format!("{}, {seconds:.1} s", size(total.bytes));
    if report.resumed {
        summary.push_str(", resumed");
    }
    lines.push(summary);
    let failures = &report.failures;
    lines.extend(failures.iter().take(NAMED).map(|failure| {
        format!(
            "failed: {}: {}",
            name(failure.kind, &failure.key, failure.field.as_ref()),
            with_causes(&failure.error)
        )
    }));
    lines.extend(rest(total.failed, failures.len().min(NAMED)));
    let mut json = json!({
        "credentials": tallies.credentials,
        "configs": tallies.configs,
        "usage": tallies.usage,
        "total": total,
        "failures": failures,
        "complete": report.is_complete(),
        "dry_run": report.dry_run,
        "resumed": report.resumed,
        "elapsed_seconds": seconds,
    });
    if let Some(verified) = verified {
        let (more, document) = compared(verified);
        lines.push(String::new());
        lines.extend(more);
        json["verify"] = document;
    }
    Answer::Lines { lines, json }
}

/// A comparison.
pub(crate) fn compared(report: &VerifyReport) -> (Vec<String>, Value) {
    let mut table = vec![["", "same", "different", "missing", "extra"].map(str::to_owned)];
    table.extend(RecordKind::ALL.map(|kind| {
        let compared = report.of(kind);
        let counts = [compared.same, compared.different, compared.missing, compared.extra];
        let [same, different, missing, extra] = counts.map(grouped);
        [plural(kind).to_owned(), same, different, missing, extra]
    }));
    let mut lines = aligned(&table);
    if let Some(all) = report.sampled_of {
        let total = report.total();
        let sample = grouped(total.same + total.different + total.missing);
        lines.push(format!("a sample of {sample} of {} records", grouped(all)));
    }
    let (source, target) = (report.source_digest.to_string(), report.target_digest.to_string());
    lines.push(format!("source  sha256:{source}"));
    lines.push(format!("target  sha256:{target}"));
    let differences = &report.differences;
    lines.extend(differences.iter().take(NAMED).map(|difference| {
        let name = name(difference.kind, &difference.key, difference.field.as_ref());
        format!("{}: {name}", difference.difference.as_str())
    }));
    let total = report.total();
    lines.extend(rest(total.different + total.missing + total.extra, differences.len().min(NAMED)));
    let json = json!({
        "credentials": report.credentials,
        "configs": report.configs,
        "usage": report.usage,
        "total": total,
        // A sample proves nothing about the other records.
        "same": report.sampled_of.is_none().then(|| report.is_same()),
        "sampled_of": report.sampled_of,
        "source_digest": source,
        "target_digest": target,
        "differences": differences,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
    });
    (lines, json)
}

fn plural(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Credential => "credentials",
        RecordKind::Config => "configs",
        other => other.as_str(),
    }
}

fn name(kind: RecordKind, key: &Key, field: Option<&Key>) -> String {
    let field = field.map_or_else(String::new, |field| format!(" `{}`", field.as_str()));
    format!("{kind} `{}`{field}", key.as_str())
}

fn rest(all: u64, named: usize) -> Option<String> {
    let rest = all.saturating_sub(named as u64);
    (rest > 0).then(|| format!("and {} more; --output json names the first 1,000", grouped(rest)))
}

/// Aligns the first column to the left, the others to the right.
fn aligned<const N: usize>(table: &[[String; N]]) -> Vec<String> {
    let widths: Vec<usize> =
        (0..N).map(|at| table.iter().map(|row| row[at].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    table.iter().map(line).collect()
}
