//! Runs a command on the backend of a URL.
//!
//! The commands of each backend are not listed: the compiler derives them from its capabilities.

use std::marker::PhantomData;

use gateway_storage::{
    File, FileOptions, Git, GitOptions, Memory, MongoDb, MongoDbOptions, Open, Postgres, PostgresOptions,
    RecordKind, Redis,
};

use crate::{
    arguments::{Arguments, Command},
    commands::{Run, verify::Sampled},
    failure::{Failure, with_causes},
    log::Log,
    output::Answer,
    session::Session,
    source::{OpenSource, Source},
    stores,
};

/// A backend as this command uses it.
pub(crate) trait CliBackend: Open {
    /// Facts for `doctor` that the backend's statistics do not have.
    const FACTS: &[(&str, &str)];
    /// Warnings of `doctor`.
    const WARNINGS: &[&str] = &[];

    /// The kinds of records that it stores, known before a store exists.
    const KINDS: &[RecordKind] = &RecordKind::ALL;

    /// A warning to print after the store is closed.
    fn warning_after_close(&self) -> Option<String> {
        None
    }

    /// Changes the configuration so that opening creates no store.
    fn existing(config: Self::Options) -> Self::Options {
        config
    }

    /// Changes the configuration to read-only, if the backend has such a mode.
    fn to_read(_: Self::Options) -> Option<Self::Options> {
        None
    }
}

impl CliBackend for File {
    const FACTS: &[(&str, &str)] =
        &[("tls", "not needed: a local directory"), ("topology", "one process at a time")];

    fn existing(mut config: FileOptions) -> FileOptions {
        config.create = false;
        config
    }

    fn to_read(mut config: FileOptions) -> Option<FileOptions> {
        config.read_only = true;
        Some(config)
    }
}

impl CliBackend for Git {
    const FACTS: &[(&str, &str)] = &[
        ("topology", "one process at a time per clone; many clones per remote"),
        ("history", "keeps deleted and replaced values: revoke such credentials where they were issued"),
    ];

    const KINDS: &[RecordKind] = &[RecordKind::Credential, RecordKind::Config];

    fn warning_after_close(&self) -> Option<String> {
        let unsent = self.unsent()?;
        let count = match unsent.commits {
            1 => "1 commit was".to_owned(),
            commits => format!("{commits} commits were"),
        };
        let why = unsent.reason.map_or(String::new(), |reason| format!(": {}", with_causes(&reason)));
        Some(format!("{count} not sent to the remote{why}"))
    }

    fn existing(mut config: GitOptions) -> GitOptions {
        config.create = false;
        config
    }
}

impl CliBackend for Memory {
    const FACTS: &[(&str, &str)] = &[
        ("tls", "not needed: in this process"),
        ("topology", "one process"),
        ("durability", "none: lost when the process ends"),
    ];
    const WARNINGS: &[&str] = &["nothing is saved: every command starts with an empty store"];
}

impl CliBackend for MongoDb {
    const FACTS: &[(&str, &str)] =
        &[("durability", "acknowledged by the members and journals that the write concern requires")];

    fn existing(mut config: MongoDbOptions) -> MongoDbOptions {
        config.create = false;
        config
    }
}

impl CliBackend for Postgres {
    const FACTS: &[(&str, &str)] = &[
        ("topology", "one server, or the first of several that accepts writes"),
        ("durability", "committed: as safe as fsync and synchronous_commit make it"),
    ];

    fn existing(mut config: PostgresOptions) -> PostgresOptions {
        config.create = false;
        config
    }
}

impl CliBackend for Redis {
    const FACTS: &[(&str, &str)] =
        &[("durability", "depends on the server: see its append-only file and eviction policy")];
}

/// A command on a backend that may lack the capability for it.
///
/// Each method exists twice. On concrete types the compiler takes the inherent one if its bound holds, and
/// the trait's otherwise, so this is decided at compile time.
struct On<'c, B, C>(&'c C, PhantomData<B>);

// Without this bound, a backend that is not a `CliBackend` would compile and support no command.
const fn on<B: CliBackend, C>(command: &C) -> On<'_, B, C> {
    On(command, PhantomData)
}

impl<B: CliBackend, C: Run<B>> On<'_, B, C> {
    fn is_possible(&self) -> bool {
        true
    }

    async fn run(&self, url: &str, log: Log) -> Option<Result<Answer, Failure>> {
        let session = Session::new(url, log);
        let result = self.0.run(&session).await;
        session.close().await;
        Some(result)
    }
}

trait Impossible {
    fn is_possible(&self) -> bool {
        false
    }

    async fn run(&self, _: &str, _: Log) -> Option<Result<Answer, Failure>> {
        None
    }
}

impl<B, C> Impossible for On<'_, B, C> {}

/// Selects the backend by the scheme of the URL. A new backend needs one line in the first rule, and a
/// [`CliBackend`].
macro_rules! on_its_backend {
    ($url:ident, $log:ident, $command:ident, $what:literal) => {
        on_its_backend! { $url $log $command $what
            "file" => File,
            "git" => Git,
            "memory" => Memory,
            "mongodb" | "mongodb+srv" => MongoDb,
            "postgres" | "postgresql" => Postgres,
            "redis" | "rediss" | "redis+unix" | "redis+sentinel" | "rediss+sentinel" | "redis-cluster" | "rediss-cluster" => Redis,
        }
    };
    ($url:ident $log:ident $command:ident $what:literal $($($scheme:literal)|+ => $backend:ident,)+) => {{
        let able = || [$((stringify!($backend), on::<$backend, _>($command).is_possible())),+];
        match $url.split_once(':').map(|(scheme, _)| scheme) {
            $(Some($($scheme)|+) => on::<$backend, _>($command)
                .run(&$url, $log)
                .await
                .unwrap_or_else(|| Err(Failure::impossible(stringify!($backend), $what, &able()))),)+
            scheme => Err(Failure::scheme(scheme, &[$($($scheme),+),+])),
        }
    }};
}

/// Runs the command on the backend that the URL names.
pub(crate) async fn run(arguments: Arguments) -> Result<Answer, Failure> {
    let log = Log(arguments.verbose);
    if let Some(refusal) = arguments.refusal() {
        return Err(refusal);
    }
    let url = match &arguments.command {
        // These name their stores themselves, or use none.
        Command::Copy(copy) => stores::resolve(&copy.target)?,
        Command::Verify(verify) => stores::resolve(&verify.target)?,
        Command::Adopt(adopt) => stores::resolve(&adopt.target)?,
        Command::Inspect(_) | Command::Completions(_) | Command::Man(_) => String::new(),
        _ => stores::chosen(arguments.url)?,
    };
    match &arguments.command {
        Command::Ping(command) => on_its_backend!(url, log, command, "be pinged"),
        Command::Stats(command) => on_its_backend!(url, log, command, "be counted"),
        Command::Doctor(command) => on_its_backend!(url, log, command, "be examined"),
        Command::Credential(command) => on_its_backend!(url, log, command, "store credentials"),
        Command::Config(command) => on_its_backend!(url, log, command, "store configuration"),
        Command::Plan(command) => on_its_backend!(url, log, command, "apply config batches"),
        Command::Usage(command) => on_its_backend!(url, log, command, "count usage"),
        Command::Cache(command) => on_its_backend!(url, log, command, "cache"),
        Command::History(command) => on_its_backend!(url, log, command, "keep a history"),
        Command::Show(command) => on_its_backend!(url, log, command, "keep a history"),
        Command::Revert(command) => on_its_backend!(url, log, command, "keep a history"),
        Command::Pull(command) => on_its_backend!(url, log, command, "have a remote"),
        Command::Push(command) => on_its_backend!(url, log, command, "have a remote"),
        Command::Schema(command) => on_its_backend!(url, log, command, "have a schema"),
        Command::Copy(command) => on_its_backend!(url, log, command, "import"),
        Command::Verify(verify) if verify.sample.is_some() => {
            let command = &Sampled(verify);
            on_its_backend!(url, log, command, "be sampled")
        }
        Command::Verify(verify) => verify.run(log).await,
        Command::Adopt(command) => on_its_backend!(url, log, command, "import"),
        Command::Export(command) => on_its_backend!(url, log, command, "export"),
        Command::Import(command) => on_its_backend!(url, log, command, "import"),
        Command::Inspect(inspect) => inspect.run().await,
        Command::Completions(completions) => Ok(completions.run()),
        Command::Man(pages) => pages.run(),
    }
}

/// Opens the store of a URL as a source.
pub(crate) async fn source(url: &str, log: Log) -> Result<Source, Failure> {
    let (url, open) = (stores::resolve(url)?, OpenSource::default());
    let command = &open;
    on_its_backend!(url, log, command, "export")?;
    open.opened()
}
