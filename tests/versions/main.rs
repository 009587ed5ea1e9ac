//! Programs of the previous version: they make the fixtures in `tests/fixtures/bd77b1c`, and use stores
//! beside this version. Run them by `make` and `mixed` there, which build that version.

mod dump;
#[path = "../moving/extended_json.rs"]
mod extended_json;
mod make;
mod mixed;
#[path = "../moving/previous/mod.rs"]
mod previous;
