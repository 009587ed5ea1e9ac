//! What a call costs, pinned: allocations, requests and round trips on the wire, the size of its future, and
//! for the backends with a server instructions.
//!
//! Each backend has a table beside this file. A call that gets dearer fails the backend's test, and so does
//! one that gets much cheaper, so that the tables stay true. If that is meant, edit the line, or write all
//! of a table with `COSTS=write cargo test --features full,conformance,git-https --test costs`.
//!
//! The calls run on a runtime of one thread, which also runs the tasks of a driver. Allocations are those of
//! this thread. Instructions are those of all threads; `benches/instructions` counts those of `File` and
//! `Memory`.

#![cfg(feature = "full")]

#[cfg(target_os = "linux")]
mod callgrind;
mod meter;
mod open;
mod operations;

use meter::Costs;
use testkit::pins;

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

/// The same, and a test of instructions. For it, calls reach a server without the proxy.
macro_rules! counted {
    ($($backend:ident: $opened:expr, $bare:expr, $capabilities:tt;)*) => {$(
        mod $backend {
            use super::*;

            #[test]
            fn costs() {
                costs!($backend, $opened, $capabilities);
            }

            #[cfg(target_os = "linux")]
            #[test]
            fn instructions() {
                count(stringify!($backend), || {
                    let opened = $bare;
                    let phases = callgrind::Phases { runtime: &opened.runtime, wants };
                    operations!(phases, &opened.storage, $capabilities);
                });
            }
        }
    )*};
}

#[cfg(target_os = "linux")]
/// The operations whose instructions are counted: the frequent ones. Counting the others takes a minute.
fn wants(operation: &str) -> bool {
    let counted = [
        "delete_config",
        "delete_credential",
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

#[cfg(target_os = "linux")]
/// Counts what `operations` runs, in a process of its own.
fn count(backend: &str, operations: impl FnOnce()) {
    if std::env::var_os(callgrind::CHILD).is_some() {
        return operations();
    }
    let test = format!("{backend}::instructions");
    let rows = callgrind::count(backend, &["--exact", &test, "--nocapture", "--test-threads=1"]);
    let title = "Instructions of a call, without optimization, so that no release build is needed";
    // In five runs on a busy machine the numbers of Redis and Postgres differed by up to 0.7 percent, those
    // of Git, whose thread waits for the disk, by up to 9, and those of MongoDb, whose driver has more tasks,
    // by up to 5.1.
    let margin = |row: &str| {
        pins::Margin::percent(match row.split('/').next() {
            Some("git" | "mongodb") => 8,
            _ => 3,
        })
    };
    let columns = [pins::Column { name: "instructions", margin }];
    meter::check(&format!("{backend}-instructions"), title, &columns, &rows);
}

local! {
    either: [credentials configs conditional leases plans usage export backend];
    file: [credentials configs conditional leases plans usage export backend];
    memory: [credentials configs conditional leases plans usage cache transactions export backend];
    scoped: [credentials configs conditional leases plans usage cache transactions export backend];
}

/// One of two backends costs a branch: no allocation more than the backend that it is, and a future as large
/// as the larger one's and a word.
#[test]
fn either_costs_a_branch() {
    let [either, file, memory] = ["either", "file", "memory"].map(meter::table);
    let size = meter::COLUMNS.iter().position(|column| column.name == "future's bytes").unwrap();
    for (operation, costs) in &either {
        let (file, memory) = (&file[operation], &memory[operation]);
        assert_eq!(costs[0], memory[0], "allocations of {operation}");
        let larger = file[size].max(memory[size]);
        assert!(costs[size] <= larger + 8, "the future of {operation}: {} and {larger}", costs[size]);
    }
}

counted! {
    git: open::git(), open::git(), [credentials configs conditional export backend];
    mongodb: open::mongodb(true), open::mongodb(false), [credentials configs conditional leases plans usage transactions export backend];
    postgres: open::postgres(true), open::postgres(false), [credentials configs conditional leases plans usage transactions export backend];
    redis: open::redis(true), open::redis(false), [credentials configs conditional leases plans usage cache export backend];
}
