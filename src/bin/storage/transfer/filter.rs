//! Which records to move or compare.

use clap::{Args, ValueEnum};
use gateway_storage::{
    RecordKind,
    migrate::{Filter, Glob},
};

/// The options that select records.
#[derive(Args)]
pub(crate) struct RecordFilter {
    /// Only records of these kinds
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,..")]
    kinds: Vec<Kind>,
    /// Only keys that match (`*` any text, `?` a character, `\` escapes); repeatable
    #[arg(long, value_name = "GLOB")]
    include: Vec<Glob>,
    /// No keys that match; repeatable
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<Glob>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Credentials,
    Configs,
    Usage,
}

impl RecordFilter {
    pub(crate) fn build(&self) -> Filter {
        let kind = |kind: &Kind| match kind {
            Kind::Credentials => RecordKind::Credential,
            Kind::Configs => RecordKind::Config,
            Kind::Usage => RecordKind::Usage,
        };
        let mut filter = Filter::default();
        filter.kinds = self.kinds.iter().map(kind).collect();
        (filter.include, filter.exclude) = (self.include.clone(), self.exclude.clone());
        filter
    }
}
