//! What a call costs, pinned: allocations, requests and round trips on the wire, and the size of its future.
//!
//! Each backend has a table beside this file. A call that gets dearer fails the backend's test, and so does one that
//! gets much cheaper, so that the tables stay true. If that is meant, edit the line, or writes all of a table with
//! `COSTS=write cargo test --features full,conformance,git-https --test costs`.
//!
//! The calls run on a runtime of one thread, which also runs the tasks of a driver. Allocations are those of this
//! thread: the threads of `File` and `Git` are counted in `benches/instructions`.

#![cfg(feature = "full")]

mod meter;
mod open;
mod operations;

use meter::Meter;

/// One test per backend: its name, and its capabilities.
macro_rules! costs {
    ($($backend:ident: [$($capability:ident)*];)*) => {$(
        #[test]
        fn $backend() {
            let opened = open::$backend();
            let mut meter = Meter::new(&opened.runtime, opened.proxy.as_ref());
            $(operations::$capability(&mut meter, &opened.storage);)*
            meter.check(stringify!($backend));
        }
    )*};
}

costs! {
    file: [credentials configs plans usage export backend];
    git: [credentials configs export backend];
    memory: [credentials configs plans usage cache transactions export backend];
    mongodb: [credentials configs plans usage transactions export backend];
    postgres: [credentials configs plans usage transactions export backend];
    redis: [credentials configs plans usage cache export backend];
}
