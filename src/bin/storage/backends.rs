//! From a URL to a backend's type, and from there to what it can do.
//!
//! What each backend can do is not listed anywhere: the compiler knows.

use std::marker::PhantomData;

use gateway_storage::{
    File, FileConfig, Git, GitConfig, Memory, MongoDb, MongoDbConfig, Open, Postgres, PostgresConfig,
    RecordKind, Redis,
};

use crate::{
    arguments::{Arguments, Command},
    commands::{Run, verify::Sampled},
    door::Door,
    failure::{Failure, told},
    log::Log,
    output::Answer,
    source::{OpenSource, Source},
    stores,
};

/// A backend of this command.
pub(crate) trait Operated: Open {
    /// What `doctor` says where the backend's statistics say nothing.
    const FACTS: &[(&str, &str)];
    /// What an operator should know before it hurts.
    const WARNINGS: &[&str] = &[];

    /// What it has a place for, known before there is a store.
    const KINDS: &[RecordKind] = &RecordKind::ALL;

    /// What an operator should know once the store is closed.
    fn afterwards(&self) -> Option<String> {
        None
    }

    /// The configuration, changed so that opening makes no new store.
    fn existing(config: Self::Config) -> Self::Config {
        config
    }

    /// The configuration, changed so that a store that can't be written is opened, if the backend can do that.
    fn to_read(_: Self::Config) -> Option<Self::Config> {
        None
    }
}

impl Operated for File {
    const FACTS: &[(&str, &str)] =
        &[("tls", "not needed: a directory of this machine"), ("topology", "one process at a time")];

    fn existing(mut config: FileConfig) -> FileConfig {
        config.create = false;
        config
    }

    fn to_read(mut config: FileConfig) -> Option<FileConfig> {
        config.read_only = true;
        Some(config)
    }
}

impl Operated for Git {
    const FACTS: &[(&str, &str)] = &[
        ("topology", "one process at a time a clone; many clones of one remote"),
        ("history", "keeps what was deleted or replaced: revoke such credentials where they were issued"),
    ];

    const KINDS: &[RecordKind] = &[RecordKind::Credential, RecordKind::Config];

    fn afterwards(&self) -> Option<String> {
        let unsent = self.unsent()?;
        let count = match unsent.commits {
            1 => "1 commit is".to_owned(),
            commits => format!("{commits} commits are"),
        };
        let why = unsent.reason.map_or(String::new(), |reason| format!(": {}", told(&reason)));
        Some(format!("{count} only here, and not at the remote{why}"))
    }

    fn existing(mut config: GitConfig) -> GitConfig {
        config.create = false;
        config
    }
}

impl Operated for Memory {
    const FACTS: &[(&str, &str)] = &[
        ("tls", "not needed: this process"),
        ("topology", "this process"),
        ("durability", "none: gone when the process ends"),
    ];
    const WARNINGS: &[&str] = &["nothing is kept: every command starts with an empty store"];
}

impl Operated for MongoDb {
    const FACTS: &[(&str, &str)] =
        &[("durability", "acknowledged by as many members and journals as the write concern says")];

    fn existing(mut config: MongoDbConfig) -> MongoDbConfig {
        config.create = false;
        config
    }
}

impl Operated for Postgres {
    const FACTS: &[(&str, &str)] = &[
        ("topology", "one server, or the first of several that takes writes"),
        ("durability", "committed: as safe as fsync and synchronous_commit make it"),
    ];

    fn existing(mut config: PostgresConfig) -> PostgresConfig {
        config.create = false;
        config
    }
}

impl Operated for Redis {
    const FACTS: &[(&str, &str)] =
        &[("durability", "what the server promises: see its append-only file and eviction policy")];
}

/// A command on a backend, before anyone has asked whether that is possible.
///
/// Each method exists twice. On concrete types the compiler takes the inherent one where its bound holds, and else
/// falls back on the trait's: so the question is answered at compile time.
struct On<'c, B, C>(&'c C, PhantomData<B>);

// The bound is here so that a backend that is not `Operated` does not compile, instead of being able to do nothing.
const fn on<B: Operated, C>(command: &C) -> On<'_, B, C> {
    On(command, PhantomData)
}

impl<B: Operated, C: Run<B>> On<'_, B, C> {
    fn is_possible(&self) -> bool {
        true
    }

    async fn run(&self, url: &str, log: Log) -> Option<Result<Answer, Failure>> {
        let door = Door::new(url, log);
        let result = self.0.run(&door).await;
        door.close().await;
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

/// Every backend of this build. A new one is a line in the first rule, and an [`Operated`].
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
        // These name their stores themselves, or have none.
        Command::Copy(copy) => stores::resolve(&copy.target)?,
        Command::Verify(verify) => stores::resolve(&verify.target)?,
        Command::Adopt(adopt) => stores::resolve(&adopt.target)?,
        Command::Inspect(_) | Command::Completions(_) | Command::Man(_) => String::new(),
        _ => stores::chosen(arguments.url)?,
    };
    match &arguments.command {
        Command::Ping(command) => on_its_backend!(url, log, command, "be asked"),
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
            on_its_backend!(url, log, command, "be asked for every kind of record")
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

/// Opens the store of a URL to read its records, whatever its backend is.
pub(crate) async fn source(url: &str, log: Log) -> Result<Source, Failure> {
    let (url, open) = (stores::resolve(url)?, OpenSource::default());
    let command = &open;
    on_its_backend!(url, log, command, "export")?;
    open.opened()
}
