//! Which requests are wide: one of these gets an exclusive connection, so that it delays no other call.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use redis::{Arg, Cmd, Value};

/// The bytes from which on a request or a reply is wide: four milliseconds at 16 MB/s.
const WIDE_BYTES: usize = 64 << 10;

/// The number of arguments or commands from which on a request is wide.
const WIDE_ITEMS: usize = 64;

/// How many commands with wide replies are remembered.
const REMEMBERED: usize = 1024;

/// The length of a command's arguments.
pub(super) fn length(command: &Cmd) -> usize {
    let length = |arg| if let Arg::Simple(arg) = arg { <[u8]>::len(arg) } else { 0 };
    command.args_iter().map(length).sum()
}

pub(super) fn is_wide(command: &Cmd) -> bool {
    command.args_iter().count() > WIDE_ITEMS || length(command) >= WIDE_BYTES
}

/// Whether a pipeline is wide.
pub(super) fn are_wide(commands: &[Cmd]) -> bool {
    commands.len() > WIDE_ITEMS || commands.iter().map(length).sum::<usize>() >= WIDE_BYTES
}

/// The reads whose last reply was wide. A value that was wide will probably be wide again.
pub(super) struct WideReplies {
    /// Whether there was one. Most stores have none, and then no command is hashed.
    has_any: AtomicBool,
    /// Hashes of commands. A later one replaces an earlier one at the same index.
    seen: Box<[AtomicU64]>,
}

impl WideReplies {
    pub(super) fn new() -> Self {
        Self {
            has_any: AtomicBool::new(false),
            seen: std::iter::repeat_with(AtomicU64::default).take(REMEMBERED).collect(),
        }
    }

    fn hash(command: &Cmd) -> u64 {
        // The name and the first two arguments tell reads of different values apart.
        let arguments = command.args_iter().take(3).map(|arg| match arg {
            Arg::Simple(arg) => arg,
            _ => b"",
        });
        BuildHasherDefault::<DefaultHasher>::default().hash_one(arguments.collect::<Vec<_>>()).max(1)
    }

    fn at(&self, hash: u64) -> &AtomicU64 {
        &self.seen[hash as usize % REMEMBERED]
    }

    pub(super) fn contains(&self, command: &Cmd) -> bool {
        self.has_any.load(Ordering::Relaxed) && {
            let hash = Self::hash(command);
            self.at(hash).load(Ordering::Relaxed) == hash
        }
    }

    /// Notes whether a reply was wide. `was_wide` is what `contains` returned for the command.
    pub(super) fn note(&self, command: &Cmd, reply: &Value, was_wide: bool) {
        let is_wide = size(reply) >= WIDE_BYTES;
        if is_wide != was_wide {
            let hash = Self::hash(command);
            self.at(hash).store(if is_wide { hash } else { 0 }, Ordering::Relaxed);
            self.has_any.store(true, Ordering::Relaxed);
        }
    }
}

/// The bytes of a reply, approximately.
fn size(reply: &Value) -> usize {
    match reply {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(items) | Value::Set(items) => items.iter().map(size).sum(),
        Value::Map(fields) => fields.iter().map(|(name, value)| size(name) + size(value)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use redis::cmd;

    use super::*;

    #[test]
    fn a_command_is_remembered_while_its_replies_are_wide() {
        let (replies, [large, other]) =
            (WideReplies::new(), ["a", "b"].map(|key| cmd("GET").arg(key).take()));
        let reply = |length| Value::BulkString(vec![0; length]);
        assert!(!replies.contains(&large));
        replies.note(&large, &reply(WIDE_BYTES), false);
        assert!(replies.contains(&large) && !replies.contains(&other));
        replies.note(&other, &Value::Nil, false);
        assert!(replies.contains(&large) && !replies.contains(&other));
        replies.note(&large, &reply(WIDE_BYTES - 1), true);
        assert!(!replies.contains(&large));
    }

    #[test]
    fn many_arguments_or_bytes_are_wide() {
        let set = |length| cmd("SET").arg("k").arg(vec![0_u8; length]).take();
        assert!(is_wide(&set(WIDE_BYTES)) && !is_wide(&set(WIDE_BYTES / 2)));
        assert!(is_wide(cmd("MGET").arg(&["k"; WIDE_ITEMS])) && !is_wide(cmd("MGET").arg(&["k"; 10])));
        assert!(are_wide(&[set(WIDE_BYTES / 2), set(WIDE_BYTES / 2)]) && !are_wide(&[set(1), set(1)]));
    }
}
