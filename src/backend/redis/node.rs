//! One server of the store.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value, cmd};

use super::{
    RedisOptions,
    connection::{Settings, Target},
    error,
    pool::{Pool, Sharing},
};
use crate::{Error, Outcome, PoolStats, Result, backend::remote::Effect};

/// The connections to one server.
pub(super) struct Node {
    pool: Pool,
    /// For writes that wait for replicas: WAIT blocks the requests behind it on its connection.
    wait_pool: Option<Pool>,
}

impl Node {
    /// `max` is the maximum number of connections per pool.
    pub(super) fn new(
        settings: &Arc<Settings>,
        target: impl Fn() -> Target,
        options: &RedisOptions,
        max: u32,
    ) -> Result<Self> {
        let pool = |sharing| Pool::new(settings.clone(), target(), options, max, sharing);
        let wait_pool = (options.wait_replicas > 0).then(|| pool(Sharing::Exclusive)).transpose()?;
        Ok(Self { pool: pool(Sharing::Shared)?, wait_pool })
    }

    /// The connections for requests with this effect.
    pub(super) fn pool(&self, effect: Effect) -> &Pool {
        match (&self.wait_pool, effect) {
            (Some(wait_pool), Effect::Write) => wait_pool,
            _ => &self.pool,
        }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        std::iter::once(&self.pool).chain(&self.wait_pool)
    }

    pub(super) fn warm(&self) {
        self.pools().for_each(Pool::warm);
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        self.pools().try_for_each(|pool| pool.resize(max))
    }

    pub(super) fn close(&self) {
        self.pools().for_each(Pool::close);
    }

    pub(super) fn stats(&self) -> PoolStats {
        self.pools().map(Pool::stats).fold(PoolStats::default(), sum)
    }
}

pub(super) fn sum(left: PoolStats, right: PoolStats) -> PoolStats {
    PoolStats {
        max: left.max.saturating_add(right.max),
        open: left.open.saturating_add(right.open),
        idle: left.idle.saturating_add(right.idle),
        waiting: left.waiting.saturating_add(right.waiting),
    }
}

/// A pipeline of commands for one server, with ASKING before each of them or WAIT after the last one.
pub(super) struct Framed {
    pub(super) pipeline: Pipeline,
    asking: bool,
    wait: Option<Wait>,
}

/// The arguments of WAIT: how many replicas must confirm a write, and within which time.
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

    /// The error if the reply to WAIT does not confirm the write, which is applied all the same.
    fn unconfirmed(self, reply: Option<&Value>) -> Option<Error> {
        match reply {
            Some(Value::Int(replicas)) if *replicas >= self.replicas.into() => None,
            Some(Value::ServerError(error)) => {
                let error = error::of_code(error.code(), error.details().unwrap_or_default());
                Some(error.with_outcome(Outcome::Unknown))
            }
            _ => Some(error::unconfirmed()),
        }
    }
}

impl Framed {
    pub(super) fn new(commands: Vec<Cmd>, asking: bool, wait: Option<Wait>) -> Self {
        let mut pipeline = Pipeline::with_capacity(2 * commands.len() + 1);
        for command in commands {
            if asking {
                pipeline.add_command(cmd("ASKING"));
            }
            pipeline.add_command(command);
        }
        if let Some(Wait { replicas, millis }) = wait {
            let mut wait = cmd("WAIT");
            wait.arg(replicas).arg(millis);
            pipeline.add_command(wait);
        }
        Self { pipeline, asking, wait }
    }

    /// The reply to each command. A refusal by the server is a value; an unconfirmed write is an error.
    pub(super) fn replies(&self, mut replies: Vec<Value>) -> Vec<Result<Value>> {
        let unconfirmed = self.wait.and_then(|wait| wait.unconfirmed(replies.pop().as_ref()));
        let step = if self.asking { 2 } else { 1 };
        replies
            .into_iter()
            .skip(step - 1)
            .step_by(step)
            .map(|reply| match (&reply, &unconfirmed) {
                (Value::ServerError(_), _) | (_, None) => Ok(reply),
                (_, Some(error)) => Err(error.clone()),
            })
            .collect()
    }
}
