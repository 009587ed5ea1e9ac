//! Selects the type of the backend by the scheme of the URL.
//!
//! The commands of each backend are not listed: the compiler derives them from its capabilities.

use std::marker::PhantomData;

use crate::{
    backend::CliBackend,
    session::Session,
    term::{
        failure::Failure,
        log::Log,
        output::{Answer, Output},
    },
};

/// A command on a backend, implemented for the backends that have the capabilities for it.
pub(crate) trait Run<B, T = Answer> {
    async fn run(&self, session: &Session<'_, B>) -> Result<T, Failure>;
}

/// A command that writes its output while it runs.
pub(crate) struct To<'c, C>(pub(crate) &'c C, pub(crate) Output);

/// A command on a backend that may lack the capability for it.
///
/// Each method exists twice. On concrete types the compiler takes the inherent one if its bound holds, and
/// the trait's otherwise, so this is decided at compile time.
pub(crate) struct On<'c, B, C, T>(&'c C, PhantomData<(B, T)>);

// Without this bound, a backend that is not a `CliBackend` would compile and support no command.
pub(crate) const fn on<B: CliBackend, C, T>(command: &C) -> On<'_, B, C, T> {
    On(command, PhantomData)
}

impl<B: CliBackend, C: Run<B, T>, T> On<'_, B, C, T> {
    pub(crate) fn is_possible(&self) -> bool {
        true
    }

    pub(crate) async fn run(&self, url: &str, log: Log) -> Option<Result<T, Failure>> {
        let session = Session::new(url, log);
        let result = self.0.run(&session).await;
        session.close().await;
        Some(result)
    }
}

pub(crate) trait Impossible<T> {
    fn is_possible(&self) -> bool {
        false
    }

    async fn run(&self, _: &str, _: Log) -> Option<Result<T, Failure>> {
        None
    }
}

impl<B, C, T> Impossible<T> for On<'_, B, C, T> {}

/// Selects the backend by the scheme of the URL, and runs a command on it whose result is a `$result`. A new
/// backend needs one line in the second rule (its feature, its type, its schemes), and a [`CliBackend`]. The
/// schemes there are for a build without the backend.
macro_rules! on_its_backend {
    ($url:expr, $log:expr, $command:expr, $what:literal) => {
        $crate::dispatch::on_its_backend!($url, $log, $command, $what, $crate::term::output::Answer)
    };
    ($url:expr, $log:expr, $command:expr, $what:literal, $result:ty) => {
        $crate::dispatch::on_its_backend! { ($url) ($log) ($command) $what $result;
            "file" File "file";
            "git" Git "git";
            "memory" Memory "memory";
            "mongodb" MongoDb "mongodb" | "mongodb+srv";
            "postgres" Postgres "postgres" | "postgresql";
            "redis" Redis "redis" | "rediss" | "redis+unix" | "redis+sentinel" | "rediss+sentinel" | "redis-cluster" | "rediss-cluster";
        }
    };
    (($url:expr) ($log:expr) ($command:expr) $what:literal $result:ty; $($feature:literal $backend:ident $($scheme:literal)|+;)+) => {{
        // Unused for a command that every backend has.
        #[allow(unused_imports)]
        use $crate::{dispatch::{Impossible as _, on}, term::failure::Failure};
        use gateway_storage::Open as _;
        let able: &[(&str, bool)] = &[$(
            #[cfg(feature = $feature)]
            (stringify!($backend), on::<gateway_storage::$backend, _, $result>($command).is_possible()),
        )+];
        let known: &[&[&str]] = &[$(#[cfg(feature = $feature)] gateway_storage::$backend::SCHEMES,)+];
        let known = &known.concat();
        let scheme = $url.split_once(':').map(|(scheme, _)| scheme);
        match scheme {
            $(
                #[cfg(feature = $feature)]
                Some(scheme) if gateway_storage::$backend::SCHEMES.contains(&scheme) => on::<gateway_storage::$backend, _, $result>($command)
                    .run($url, $log)
                    .await
                    .unwrap_or_else(|| Err(Failure::impossible(stringify!($backend), $what, able))),
                #[cfg(not(feature = $feature))]
                Some($($scheme)|+) => Err(Failure::scheme(scheme, known, Some($feature))),
            )+
            _ => Err(Failure::scheme(scheme, known, None)),
        }
    }};
}

pub(crate) use on_its_backend;
