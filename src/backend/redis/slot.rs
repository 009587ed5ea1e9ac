//! Hash slots and hash tags of Redis keys.

use redis::{Arg, Cmd};

use crate::{Error, ErrorKind, Result};

pub(super) const SLOTS: usize = 16_384;

/// The slot of a command's key: its first argument, or in EVAL the first after the number of keys.
pub(super) fn of_command(command: &Cmd) -> Result<u16> {
    let mut words = command.args_iter();
    let is_script = matches!(words.next(), Some(Arg::Simple(b"EVAL")));
    match words.nth(if is_script { 2 } else { 0 }) {
        Some(Arg::Simple(key)) => Ok(of_key(key)),
        _ => Err(Error::new(ErrorKind::Internal, "a command without a key was sent to a cluster")),
    }
}

pub(super) fn of_key(key: &[u8]) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(tag_of(key).unwrap_or(key)) % SLOTS as u16
}

/// The part of a key that determines its slot, if it is not the whole key.
pub(super) fn tag_of(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let length = key[open + 1..].iter().position(|byte| *byte == b'}')?;
    Some(&key[open + 1..open + 1 + length]).filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use redis::cmd;

    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16::State::<crc16::XMODEM>::calculate(b"123456789"), 0x31c3);
        // The replies of CLUSTER KEYSLOT.
        assert_eq!(of_key(b"foo"), 12182);
        assert_eq!(of_key(b"{foo}bar"), 12182);
        assert_eq!(of_key(b"x{foo}{bar}"), 12182);
        assert_eq!(of_key(b"foo{}{bar}"), 8363);
        assert_eq!(of_key(b"foo{{bar}}zap"), of_key(b"{bar"));
    }

    #[test]
    fn the_slot_of_a_command_is_that_of_its_key() {
        assert_eq!(of_command(cmd("GET").arg("foo")).unwrap(), 12182);
        assert_eq!(of_command(cmd("EVAL").arg("return 1").arg(1).arg("foo").arg("x")).unwrap(), 12182);
        assert!(of_command(&cmd("PING")).is_err());
    }
}
