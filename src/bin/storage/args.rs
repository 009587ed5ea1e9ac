//! The command line: global options, commands, and the help around them.

use std::{env, ffi::OsString};

use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{
    commands::{
        self, backup, cache, compact, completions, config, copy, credential, doctor, export, history, import,
        inspect, lease, man, ping, plan, remote, schema, stats, usage, verify, watch,
    },
    stores,
    term::{failure::Failure, output::Output},
};

const AFTER_HELP: &str = "\
URLs:
  file:./data                a directory; options: ?create=false&wait=30s&read_only=true
  postgres://user@host/db    a PostgreSQL database;
                             options: ?sslmode=verify-full&schema=gateway_storage
  git:./settings             a Git repository; options: ?branch=main&remote=URL&token_env=NAME
  redis://host:6379/0        a Redis server; also rediss, redis+sentinel, redis-cluster;
                             options: ?prefix=gcli2api:
  mongodb://host/db          a MongoDB database; also mongodb+srv; options: ?create=false
  memory:                    in this process only; nothing is saved
Other users can see a process's arguments, and a URL can hold a password. Every URL can therefore
be given as:
  env:NAME                   the URL in this environment variable
  @FILE                      the URL in this file, such as a mounted Docker or Kubernetes secret
  NAME                       the URL of a named store, from `NAME = URL` lines in
                             ~/.config/gateway-storage/stores or the file in STORAGE_CONFIG
Without --url, the URL comes from STORAGE_URL, from the file named by STORAGE_URL_FILE, or from the
named store `default`. Other users must not be able to read these files (chmod 600). A file whose
mode you can't change is accepted, with a warning if all users can read it. White space around a
URL is ignored.

A value (JSON, or bytes for the cache) is one quoted argument, @FILE to read a file, or - to read
stdin. Pass secrets with @FILE or -.

Only `set`, `increment`, `copy`, `import`, `adopt` and `pull` create a store. With --output json,
errors are JSON documents on stderr. An error that is about one record names its key.

Examples:
  export STORAGE_URL=file:./data
  storage credential set alice @alice.json
  storage credential get alice --reveal
  storage config set retries 3
  storage usage increment alice requests -5
  storage credential get -- -rf              # -- before a key that begins with a dash
  storage stats --output json | jq .credential_count
  storage watch --kinds configs              # what changes, until Ctrl-C
  storage export backup.ndjson
  storage --url redis://localhost import backup.ndjson --dry-run
  storage copy prod env:STAGING_URL --verify # `prod` is a named store
  STORAGE_URL_FILE=/run/secrets/storage-url storage ping

Exit codes:
  0    success; also `watch` that was ended by Ctrl-C, SIGTERM or its reader
  1    error, such as no record under this key
  2    usage error: invalid command, key, value or URL, or an input that can't be read
  3    the two stores differ
  4    partial success: some records were refused, or the transfer stopped (continue with --resume)
  5    can't open or reach the store, or access is denied
  6    the backend does not support this command
  75   `lease run`: the lease is not free
  76   `lease run`: the lease was lost, and the command was stopped
  126  `lease run`: the command can't be started
  127  `lease run`: the command is not found
  130  interrupted; `copy` has saved its checkpoint
Otherwise `lease run` exits with the code of its command, or with 128 and the number of the signal
that ended it.";

/// Inspect and manage an LLM gateway's storage
#[derive(Parser)]
#[command(name = "storage", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Arguments {
    // Not with clap's `env`: the environment's URL would look like one on the command line.
    /// URL or name of the store [env: STORAGE_URL, STORAGE_URL_FILE]
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) url: Option<String>,

    /// Output format
    #[arg(long, global = true, value_enum, default_value_t = Output::Human, help_heading = GLOBAL)]
    pub(crate) output: Output,

    /// Log each operation and its duration to stderr
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) verbose: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const GLOBAL: &str = "Global options";

impl Arguments {
    /// The grammar. Commands that name their stores themselves do not offer `--url`.
    pub(crate) fn grammar() -> clap::Command {
        let grammar = Self::command();
        let url = grammar.get_arguments().find(|argument| argument.get_id() == "url").cloned();
        let hidden = url.map(|url| url.hide(true));
        grammar.mut_subcommands(|command| match OWN.contains(&command.get_name()) {
            true => command.args(hidden.clone()),
            false => command,
        })
    }

    /// Parses the command line.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let mut grammar = Self::grammar();
        let mut line: Vec<OsString> = env::args_os().collect();
        let mut found = grammar.try_get_matches_from_mut(&line);
        // clap's own `help` command rejects `--help`.
        let help = ["--help", "-h"].map(OsString::from);
        if line.last().is_some_and(|last| help.contains(last))
            && found.as_ref().is_err_and(is_unknown_command)
        {
            line.pop();
            found = grammar.try_get_matches_from_mut(&line);
        }
        let mut found = found?;
        Self::from_arg_matches_mut(&mut found).map_err(|error| error.format(&mut grammar))
    }

    /// The URL of the store that the command runs on: its target, if it takes both stores as arguments;
    /// empty, if it needs no store.
    pub(crate) fn store_url(&self) -> Result<String, Failure> {
        let Some((name, why, target)) = self.command.own_stores() else {
            return stores::chosen(self.url.as_deref());
        };
        match self.url {
            Some(_) => Err(Failure::usage(format!("`{name}` takes no --url: it {why}"))),
            None => target.map_or(Ok(String::new()), stores::resolve),
        }
    }
}

/// Whether clap took `--help` for a command.
fn is_unknown_command(error: &clap::Error) -> bool {
    let word = error.get(ContextKind::InvalidSubcommand);
    matches!(word, Some(ContextValue::String(word)) if word.starts_with('-'))
}

/// The commands that take no `--url`.
const OWN: [&str; 6] = ["copy", "verify", "adopt", "inspect", "completions", "man"];

#[derive(Subcommand)]
pub(crate) enum Command {
    Ping(ping::Ping),
    Stats(stats::Stats),
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Credential(credential::Command),
    #[command(subcommand)]
    Config(config::Command),
    #[command(subcommand)]
    Plan(plan::Command),
    #[command(subcommand)]
    Usage(usage::Command),
    #[command(subcommand)]
    Cache(cache::Command),
    #[command(subcommand)]
    Lease(lease::Command),
    Watch(watch::Watch),
    History(history::Changes),
    Show(history::Show),
    Revert(history::Revert),
    Pull(remote::Pull),
    Push(remote::Push),
    #[command(subcommand)]
    Schema(schema::Command),
    Backup(backup::Backup),
    Compact(compact::Compact),
    Export(export::Export),
    Import(import::Import),
    Copy(copy::Copy),
    Verify(verify::Verify),
    #[cfg(any(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
    Adopt(commands::adopt::Adopt),
    Inspect(inspect::Inspect),
    Completions(completions::Completions),
    Man(man::Pages),
}

impl Command {
    /// For a command in [`OWN`]: its name, why it takes no `--url`, and its target.
    fn own_stores(&self) -> Option<(&str, &str, Option<&str>)> {
        let names = "takes both stores as arguments";
        Some(match self {
            Self::Copy(copy) => ("copy", names, Some(&copy.target)),
            Self::Verify(verify) => ("verify", names, Some(&verify.target)),
            #[cfg(any(feature = "file", feature = "mongodb", feature = "postgres", feature = "redis"))]
            Self::Adopt(adopt) => ("adopt", names, Some(&adopt.target)),
            Self::Inspect(_) => ("inspect", "reads a file, not a store", None),
            Self::Completions(_) => ("completions", "needs no store", None),
            Self::Man(_) => ("man", "needs no store", None),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_valid() {
        Arguments::grammar().debug_assert();
    }
}
