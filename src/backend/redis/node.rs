//! One server of the store.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value, cmd};

use super::{
    RedisOptions,
    connection::{Settings, Target},
    error,
    pool::Pool,
};
use crate::{Error, Outcome, PoolStats, Result, backend::remote::Effect};

/// One server: the connections to it.
pub(super) struct Node {
    /// For everything that the server answers at once.
    pool: Pool,
    /// For writes that wait for replicas: WAIT holds up what comes after it on its connection.
    waiting: Option<Pool>,
}

impl Node {
    /// `max` is the most connections.
    pub(super) fn new(
        settings: &Arc<Settings>,
        target: impl Fn() -> Target,
        config: &RedisOptions,
        max: u32,
    ) -> Result<Self> {
        let pool = |alone| Pool::new(settings.clone(), target(), config, max, alone);
        // Nobody queues behind a WAIT as long as there is another connection.
        let waiting = (config.wait_replicas > 0).then(|| pool(true)).transpose()?;
        Ok(Self { pool: pool(false)?, waiting })
    }

    /// The connections for requests of this effect.
    pub(super) fn pool(&self, effect: Effect) -> &Pool {
        match (&self.waiting, effect) {
            (Some(waiting), Effect::Write) => waiting,
            _ => &self.pool,
        }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        std::iter::once(&self.pool).chain(&self.waiting)
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

pub(super) fn sum(one: PoolStats, other: PoolStats) -> PoolStats {
    PoolStats {
        max: one.max.saturating_add(other.max),
        open: one.open.saturating_add(other.open),
        idle: one.idle.saturating_add(other.idle),
        waiting: one.waiting.saturating_add(other.waiting),
    }
}

/// Commands for one server, as they go over the wire.
pub(super) struct Envelope {
    pub(super) pipeline: Pipeline,
    /// What goes with each command.
    asking: bool,
    /// What comes after all.
    wait: Option<Wait>,
}

/// How many replicas have to have a write, and for how long it waits for them.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    replicas: u32,
    millis: u64,
}

impl Wait {
    pub(super) fn new(config: &RedisOptions) -> Option<Self> {
        // Zero would be for ever.
        let millis =
            u64::try_from(config.wait_timeout.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64);
        (config.wait_replicas > 0).then_some(Self { replicas: config.wait_replicas, millis })
    }

    /// Why a write is not confirmed, from the reply to WAIT. It is done all the same.
    fn problem(self, reply: Option<&Value>) -> Option<Error> {
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

impl Envelope {
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

    /// The reply to each command. What the server refused is a value; what too few replicas have is an error.
    pub(super) fn open(&self, mut replies: Vec<Value>) -> Vec<Result<Value>> {
        let unconfirmed = self.wait.and_then(|wait| wait.problem(replies.pop().as_ref()));
        let step = if self.asking { 2 } else { 1 };
        replies
            .into_iter()
            .skip(step - 1)
            .step_by(step)
            .map(|reply| match (&reply, &unconfirmed) {
                (Value::ServerError(_), _) | (_, None) => Ok(reply),
                (_, Some(problem)) => Err(problem.clone()),
            })
            .collect()
    }
}
