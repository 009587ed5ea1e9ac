//! Budgets: a script compares a counter's total and adds to it.

use redis::{Cmd, Value, cmd};

use super::{error, reply};
use crate::{Key, Result, backend::remote::Effect, model::Within};

/// KEYS: the usage record. ARGV: the field, the number to add, and the largest total to which it may be added
/// (the limit less the number) in two parts, because a number of Lua is exact only up to 2^53.
///
/// The reply is the old total: as a status if nothing was added, so that WAIT does not turn that into an
/// unconfirmed write. HINCRBY has the errors for a value that is no counter, and for a total below the range.
const WITHIN: &str = "local total = redis.call('HGET', KEYS[1], ARGV[1]) or '0' \
    local sign, digits = string.match(total, '^(-?)(%d+)$') \
    if digits then \
        local high = tonumber(sign .. string.sub(digits, 1, -10)) or 0 \
        local low = tonumber(sign .. string.sub(digits, -9)) \
        local most = tonumber(ARGV[3]) \
        if high > most or high == most and low > tonumber(ARGV[4]) then \
            return redis.status_reply(total) \
        end \
    end \
    redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2]) \
    return total";

/// The low part has nine digits.
const HIGH: i128 = 1_000_000_000;

/// The command for the record with this name.
pub(super) fn command(record: &str, field: &Key, delta: i64, limit: i64) -> Cmd {
    // Outside of `i64` it says the same: no total is larger, or every total is.
    let most = i128::from(limit) - i128::from(delta);
    let mut eval = cmd("EVAL");
    eval.arg(WITHIN).arg(1).arg(record).arg(field.as_str()).arg(delta);
    eval.arg((most / HIGH).to_string()).arg((most % HIGH).to_string()).take()
}

/// What the reply says.
pub(super) fn result(key: &Key, delta: i64, reply: Value) -> Result<Within> {
    let counter = |text: &[u8]| reply::counter(text).ok_or_else(|| reply::no_counter(key));
    let unexpected = || error::unexpected_reply(Effect::Write).with_key(key);
    match reply {
        Value::SimpleString(total) => Ok(Within::Refused(counter(total.as_bytes())?)),
        Value::BulkString(total) => {
            counter(&total)?.checked_add(delta).map(Within::Counted).ok_or_else(unexpected)
        }
        _ => Err(unexpected()),
    }
}
