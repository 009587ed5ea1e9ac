//! What the macro makes of a trait, and what it says of a wrong one.

mod errors;
mod expansion;
