//! The commands: their arguments, and what they do.

#[cfg(any(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
pub(crate) mod adopt;
pub(crate) mod backup;
pub(crate) mod cache;
pub(crate) mod compact;
pub(crate) mod completions;
mod condition;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod credential;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod lease;
pub(crate) mod man;
mod page;
pub(crate) mod ping;
pub(crate) mod plan;
pub(crate) mod remote;
pub(crate) mod schema;
pub(crate) mod stats;
pub(crate) mod usage;
pub(crate) mod verify;
pub(crate) mod watch;

// For the commands.
use crate::{
    backend::CliBackend,
    dispatch::{Run, To},
    session::Session,
    term::{failure::Failure, output::Answer},
};
