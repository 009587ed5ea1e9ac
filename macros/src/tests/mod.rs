//! Tests of the expansion of valid traits and of the errors of invalid ones.

mod errors;
mod expansion;
