//! The commands: their arguments, and what they do.

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

use crate::{failure::Failure, output::Answer, session::Session};

/// A command on a backend, implemented for the backends that have the capabilities for it.
pub(crate) trait Run<B> {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure>;
}
