//! The settings of sessions and transactions, as SQL.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::options::{Isolation, PostgresOptions};
use crate::Result;

/// Milliseconds for the server, rounded up, since zero means no limit to it.
fn millis(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128)
}

/// The server's timeouts.
fn timeouts(options: &PostgresOptions) -> [(&'static str, u128); 3] {
    [
        ("statement_timeout", millis(options.statement_timeout)),
        ("lock_timeout", millis(options.lock_timeout)),
        ("idle_in_transaction_session_timeout", millis(options.idle_in_transaction_session_timeout)),
    ]
}

/// The settings of new sessions. Inside a value, a space is escaped.
pub(super) fn of_session(options: &PostgresOptions) -> String {
    let timeouts = timeouts(options).map(|(name, value)| format!("-c {name}={value} "));
    timeouts.concat() + "-c default_transaction_isolation=read\\ committed"
}

/// The SQL that begins a transaction.
pub(super) fn begin(options: &PostgresOptions) -> String {
    let level = match options.isolation {
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    };
    let mut begin = format!("BEGIN ISOLATION LEVEL {level}");
    if options.isolation == Isolation::Serializable {
        // The server would scan a small table, and a scan conflicts with every write to the table.
        begin.push_str("; SET LOCAL enable_seqscan = off");
    }
    begin + &of_transaction(options)
}

/// The SQL that begins the transaction of a plan, after the transactions of all earlier plans.
///
/// The lock takes no snapshot, so the transaction sees the changes of the previous one.
pub(super) fn begin_plan(options: &PostgresOptions) -> Result<String> {
    let (settings, schema) = (of_transaction(options), options.quoted_schema()?);
    Ok(format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ{settings}; LOCK TABLE {schema}.plans IN SHARE ROW EXCLUSIVE MODE"
    ))
}

/// Behind a pooler, clients share sessions, so that only a transaction can have settings.
fn of_transaction(options: &PostgresOptions) -> String {
    if !options.pgbouncer {
        return String::new();
    }
    timeouts(options).map(|(name, value)| format!("; SET LOCAL {name} = {value}")).concat()
}

/// The key of the advisory lock under which one process at a time migrates this schema.
pub(super) fn lock_of(schema: &str) -> i64 {
    let digest = Sha256::digest(format!("gateway-storage schema {schema}"));
    i64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zero_means_no_limit() {
        let duration = Duration::from_micros(1);
        assert_eq!(
            (millis(Duration::ZERO), millis(duration), millis(Duration::MAX)),
            (0, 1, i32::MAX as u128)
        );
    }
}
