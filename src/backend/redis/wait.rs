//! WAIT: writes that replicas must confirm.

use redis::{Cmd, Value, cmd};

use super::{RedisOptions, error};
use crate::{Error, Outcome};

/// How many replicas must confirm a write, and within which time.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    replicas: u32,
    millis: u64,
}

impl Wait {
    pub(super) fn new(options: &RedisOptions) -> Option<Self> {
        // Zero would mean no timeout.
        let millis =
            u64::try_from(options.wait_timeout.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64);
        (options.wait_replicas > 0).then_some(Self { replicas: options.wait_replicas, millis })
    }

    pub(super) fn command(self) -> Cmd {
        cmd("WAIT").arg(self.replicas).arg(self.millis).take()
    }

    /// The error if the reply does not confirm the write, which is applied all the same.
    pub(super) fn unconfirmed(self, reply: Option<&Value>) -> Option<Error> {
        match reply {
            Some(Value::Int(replicas)) if *replicas >= self.replicas.into() => None,
            Some(Value::ServerError(error)) => Some(error::of_reply(error).with_outcome(Outcome::Unknown)),
            _ => Some(error::unconfirmed()),
        }
    }
}
