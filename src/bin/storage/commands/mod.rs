//! The commands: what each one takes, and what it does with a backend that can.

pub(crate) mod adopt;
pub(crate) mod cache;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod credential;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod ping;
pub(crate) mod plan;
pub(crate) mod remote;
pub(crate) mod schema;
pub(crate) mod shell;
pub(crate) mod stats;
pub(crate) mod usage;
pub(crate) mod verify;

use crate::{door::Door, failure::Failure, output::Answer};

/// A command that runs on this backend. Implemented for the backends that can, and for no other.
pub(crate) trait Run<B> {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure>;
}
