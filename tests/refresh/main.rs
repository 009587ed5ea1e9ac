//! Many processes and tasks want the same tokens, from a provider that revokes an account at the second use
//! of a token. Processes are paused and killed, callers are dropped, and the store is cut.
//!
//! This program runs itself as the workers. What is stored afterwards is compared with the provider's log.
//!
//! CI runs a share. A long run, in which each row can be chosen by its name:
//!
//! `REFRESH_PROCESSES=8 REFRESH_TOKENS=1000 cargo test --all-features --test refresh at_once`
//! `REFRESH_ROUNDS=1000 cargo test --all-features --test refresh paused`
//! `REFRESH_ROUNDS=1000 cargo test --all-features --test refresh killed`
//! `REFRESH_CALLERS=5000 cargo test --all-features --test refresh dropped`
//!
//! `REFRESH_SEED=N` repeats the times of pauses and kills. With `REFRESH_UNPROTECTED=1` each caller reads,
//! refreshes and writes without more ado, and the tests must fail.

mod fleet;
mod places;
mod refresh_one;
mod tasks;
mod worker;

#[cfg(any(feature = "mongodb", feature = "postgres", feature = "redis"))]
mod processes;

use std::{env, fmt::Debug, str::FromStr};

/// The name and the function of each test.
const TESTS: &[testkit::runner::Test] = &[
    ("an_unprotected_refresh_is_caught", tasks::unprotected),
    ("at_once_on_memory", tasks::at_once_on_memory),
    ("at_once_on_file", tasks::at_once_on_file),
    ("dropped_on_memory", tasks::dropped_on_memory),
    ("dropped_on_file", tasks::dropped_on_file),
    #[cfg(feature = "redis")]
    ("at_once_on_redis", processes::redis::at_once),
    #[cfg(feature = "redis")]
    ("paused_on_redis", processes::redis::paused),
    #[cfg(feature = "redis")]
    ("killed_on_redis", processes::redis::killed),
    #[cfg(feature = "redis")]
    ("no_store_on_redis", processes::redis::no_store),
    #[cfg(feature = "redis")]
    ("store_comes_back_on_redis", processes::redis::store_comes_back),
    #[cfg(feature = "postgres")]
    ("at_once_on_postgres", processes::postgres::at_once),
    #[cfg(feature = "postgres")]
    ("paused_on_postgres", processes::postgres::paused),
    #[cfg(feature = "postgres")]
    ("killed_on_postgres", processes::postgres::killed),
    #[cfg(feature = "postgres")]
    ("no_store_on_postgres", processes::postgres::no_store),
    #[cfg(feature = "postgres")]
    ("store_comes_back_on_postgres", processes::postgres::store_comes_back),
    #[cfg(feature = "mongodb")]
    ("at_once_on_mongodb", processes::mongodb::at_once),
    #[cfg(feature = "mongodb")]
    ("paused_on_mongodb", processes::mongodb::paused),
    #[cfg(feature = "mongodb")]
    ("killed_on_mongodb", processes::mongodb::killed),
    #[cfg(feature = "mongodb")]
    ("no_store_on_mongodb", processes::mongodb::no_store),
    #[cfg(feature = "mongodb")]
    ("store_comes_back_on_mongodb", processes::mongodb::store_comes_back),
];

fn main() {
    let mut arguments = env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "--worker").is_some() {
        return worker::run(&arguments.collect::<Vec<_>>());
    }
    testkit::runner::run(TESTS, arguments);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A number of a long run, from the environment.
fn number<T: FromStr<Err: Debug>>(name: &str, usual: T) -> T {
    env::var(name).map_or(usual, |number| number.parse().expect("a number"))
}

/// Whether refreshes are protected, as they should be.
fn is_protected() -> bool {
    env::var_os("REFRESH_UNPROTECTED").is_none()
}

/// Random numbers. Prints their seed.
fn random() -> fastrand::Rng {
    let seed = number("REFRESH_SEED", fastrand::u64(..1 << 32));
    println!("REFRESH_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
