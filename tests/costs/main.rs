//! What a call costs, pinned: allocations, requests and round trips on the wire, the size of its future, and for the
//! backends with a server instructions.
//!
//! Each backend has a table beside this file. A call that gets dearer fails the backend's test, and so does one that
//! gets much cheaper, so that the tables stay true. If that is meant, edit the line, or write all of a table with
//! `COSTS=write cargo test --features full,conformance,git-https --test costs`.
//!
//! The calls run on a runtime of one thread, which also runs the tasks of a driver. Allocations are those of this
//! thread. `benches/instructions` counts what the threads of `File` and `Git` do.

#![cfg(feature = "full")]

mod callgrind;
mod meter;
mod open;
mod operations;

use callgrind::{CHILD, Phases};
use meter::Costs;
use testkit::pins::{self, Column, Margin};

/// Measures the operations of these capabilities.
macro_rules! operations {
    ($meter:expr, $storage:expr, [$($capability:ident)*]) => {{
        let mut meter = $meter;
        $(operations::$capability(&mut meter, $storage);)*
        meter
    }};
}

macro_rules! costs {
    ($backend:ident, $opened:expr, $capabilities:tt) => {{
        let opened = $opened;
        let meter = Costs::new(&opened.runtime, opened.proxy.as_ref());
        operations!(meter, &opened.storage, $capabilities).check(stringify!($backend));
    }};
}

/// One test per backend: its name, and its capabilities.
macro_rules! local {
    ($($backend:ident: $capabilities:tt;)*) => {$(
        #[test]
        fn $backend() {
            costs!($backend, open::$backend(), $capabilities);
        }
    )*};
}

macro_rules! remote {
    ($($backend:ident: $capabilities:tt;)*) => {$(
        mod $backend {
            use super::*;

            #[test]
            fn costs() {
                costs!($backend, open::$backend(true), $capabilities);
            }

            #[test]
            fn instructions() {
                count(stringify!($backend), || {
                    let opened = open::$backend(false);
                    let phases = Phases { runtime: &opened.runtime, wants };
                    operations!(phases, &opened.storage, $capabilities);
                });
            }
        }
    )*};
}

/// The operations whose instructions are counted: the frequent ones. Counting the others takes a minute.
fn wants(operation: &str) -> bool {
    let counted = [
        "get_cache",
        "get_config",
        "get_credential",
        "increment_usage",
        "set_cache",
        "set_config",
        "set_credential",
    ];
    counted.contains(&operation)
}

/// Counts what `operations` runs, in a process of its own.
fn count(backend: &str, operations: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return operations();
    }
    let test = format!("{backend}::instructions");
    let rows = callgrind::count(backend, &["--exact", &test, "--nocapture", "--test-threads=1"]);
    let title = "Instructions of a call, without optimization, so that no release build is needed";
    let columns = [Column { name: "instructions", margin: |_| Margin::percent(5) }];
    meter::check(&format!("{backend}-instructions"), title, &columns, &rows);
}

local! {
    file: [credentials configs plans usage export backend];
    git: [credentials configs export backend];
    memory: [credentials configs plans usage cache transactions export backend];
}

remote! {
    mongodb: [credentials configs plans usage transactions export backend];
    postgres: [credentials configs plans usage transactions export backend];
    redis: [credentials configs plans usage cache export backend];
}
