//! What a backend reports to this command.

use gateway_storage::{Open, RecordKind};
#[cfg(feature = "file")]
use gateway_storage::{Sharing, Verify};

/// A backend as this command uses it.
pub(crate) trait CliBackend: Open {
    /// Facts for `doctor` that the backend's statistics do not have.
    const FACTS: &[(&str, &str)];
    /// Warnings of `doctor`.
    const WARNINGS: &[&str] = &[];

    /// The kinds of records that it stores, known before a store exists.
    const KINDS: &[RecordKind] = &RecordKind::ALL;

    /// Whether another process can go on from a cursor of a watch.
    const KEEPS_CURSORS: bool = true;

    /// A warning to print after the store is closed.
    fn warning_after_close(&self) -> Option<String> {
        None
    }

    /// Changes the options so that opening creates no store.
    fn existing(options: Self::Options) -> Self::Options {
        options
    }

    /// Changes the options of every command.
    fn adjusted(options: Self::Options) -> Self::Options {
        options
    }

    /// The ways to open a store for reading only, the best first.
    fn to_read(_: Self::Options) -> Vec<Self::Options> {
        Vec::new()
    }
}

#[cfg(feature = "file")]
impl CliBackend for gateway_storage::File {
    const FACTS: &[(&str, &str)] = &[
        ("tls", "not needed: a local directory"),
        ("topology", "the processes of one machine, as `shared` allows"),
    ];
    const KEEPS_CURSORS: bool = false;

    fn existing(options: Self::Options) -> Self::Options {
        options.with_create(false)
    }

    /// A command begins at once, whatever the size of the store: `doctor --check` verifies.
    fn adjusted(options: Self::Options) -> Self::Options {
        options.with_verify(Verify::Unclean)
    }

    /// Beside a program that is the only writer, a store can be read in the mode of that program.
    fn to_read(options: Self::Options) -> Vec<Self::Options> {
        let options = options.with_create(false).with_read_only(true);
        vec![options.clone(), options.with_shared(Sharing::SingleWriter)]
    }
}

#[cfg(feature = "git")]
impl CliBackend for gateway_storage::Git {
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
        let why = unsent
            .reason
            .map_or(String::new(), |reason| format!(": {}", crate::term::failure::with_causes(&reason)));
        Some(format!("{count} not sent to the remote{why}"))
    }

    fn existing(options: Self::Options) -> Self::Options {
        options.with_create(false)
    }
}

#[cfg(feature = "memory")]
impl CliBackend for gateway_storage::Memory {
    const FACTS: &[(&str, &str)] = &[
        ("tls", "not needed: in this process"),
        ("topology", "one process"),
        ("durability", "none: lost when the process ends"),
    ];
    const WARNINGS: &[&str] = &["nothing is saved: every command starts with an empty store"];
    const KEEPS_CURSORS: bool = false;
}

#[cfg(feature = "mongodb")]
impl CliBackend for gateway_storage::MongoDb {
    const FACTS: &[(&str, &str)] =
        &[("durability", "acknowledged by the members and journals that the write concern requires")];

    fn existing(options: Self::Options) -> Self::Options {
        options.with_create(false)
    }
}

#[cfg(feature = "postgres")]
impl CliBackend for gateway_storage::Postgres {
    const FACTS: &[(&str, &str)] = &[
        ("topology", "one server, or the first of several that accepts writes"),
        ("durability", "committed: as safe as fsync and synchronous_commit make it"),
    ];

    fn existing(options: Self::Options) -> Self::Options {
        options.with_create(false)
    }
}

#[cfg(feature = "redis")]
impl CliBackend for gateway_storage::Redis {
    const FACTS: &[(&str, &str)] =
        &[("durability", "depends on the server: see its append-only file and eviction policy")];
    const KEEPS_CURSORS: bool = false;
}
