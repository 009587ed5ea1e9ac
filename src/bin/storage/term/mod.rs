//! What the operator sees and types besides the command line: output, errors, progress, signals.

pub(crate) mod failure;
pub(crate) mod interrupt;
pub(crate) mod listing;
pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod report;
pub(crate) mod text;
pub(crate) mod usage_error;
