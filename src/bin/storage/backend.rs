//! What a backend reports to this command.

use gateway_storage::{Open, RecordKind};

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

    /// Changes the options so that opening creates no store.
    fn existing(options: Self::Options) -> Self::Options {
        options
    }

    /// Changes the options so that opening does not read the whole store to verify it.
    fn unverified(options: Self::Options) -> Self::Options {
        options
    }

    /// Changes the options to read-only, if the backend has such a mode.
    fn to_read(_: Self::Options) -> Option<Self::Options> {
        None
    }
}

#[cfg(feature = "file")]
impl CliBackend for gateway_storage::File {
    const FACTS: &[(&str, &str)] =
        &[("tls", "not needed: a local directory"), ("topology", "one process at a time")];

    fn existing(options: Self::Options) -> Self::Options {
        options.with_create(false)
    }

    fn unverified(options: Self::Options) -> Self::Options {
        options.with_verify(gateway_storage::Verify::Unclean)
    }

    fn to_read(options: Self::Options) -> Option<Self::Options> {
        Some(options.with_read_only(true))
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
}
