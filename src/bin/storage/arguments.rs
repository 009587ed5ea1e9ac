//! The line: what stands before, between and after the commands.

use std::{env, ffi::OsString};

use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{
    commands::{
        adopt::Adopt,
        cache, config,
        copy::Copy,
        credential,
        doctor::Doctor,
        export::Export,
        history::{History, Revert, Show},
        import::Import,
        inspect::Inspect,
        ping::Ping,
        plan,
        remote::{Pull, Push},
        schema,
        shell::{Completions, Pages},
        stats::Stats,
        usage,
        verify::Verify,
    },
    failure::Failure,
    output::Output,
};

const AFTER_HELP: &str = "\
URLs:
  file:./data                a directory on disk; options: ?create=false&wait=30s&read_only=true
  postgres://user@host/db    a PostgreSQL database; options: ?sslmode=verify-full&schema=gateway_storage
  git:./settings             a Git repository; options: ?branch=main&remote=URL&token_env=NAME
  redis://host:6379/0        a Redis server; also rediss, redis+sentinel, redis-cluster; options: ?prefix=gcli2api:
  mongodb://host/db          a MongoDB database; also mongodb+srv; options: ?create=false
  memory:                    this process only: nothing is kept
Other users can see the arguments of a process, and a URL can hold a password. So wherever a URL is taken there can stand:
  env:NAME                   the URL in this environment variable
  @FILE                      the URL in this file, such as a mounted Docker or Kubernetes secret
  NAME                       the URL of this store in ~/.config/gateway-storage/stores, or in the file that STORAGE_CONFIG
                             names: `NAME = URL` a line
Without --url the store is that of STORAGE_URL, or of the file that STORAGE_URL_FILE names, or the one that is called `default`.
Other users must not be able to read these files (chmod 600); one whose mode you can't change is read, with a warning if
all users can read it. White space around a URL is cut off.

Values (JSON, and the cache's bytes) are one quoted argument, @FILE to read a file, or - to read stdin: give secrets by
@FILE or -.

Only `set`, `increment`, `copy`, `import`, `adopt` and `pull` make a new store. With --output json an error is a
document, too, on stderr.

Examples:
  export STORAGE_URL=file:./data
  storage credential set alice @alice.json
  storage credential get alice --reveal
  storage config set retries 3
  storage usage increment alice requests -5
  storage credential get -- -rf              # -- before a key that begins with a dash
  storage stats --output json | jq .credential_count
  storage export backup.ndjson
  storage --url redis://localhost import backup.ndjson --dry-run
  storage copy prod env:STAGING_URL --verify # `prod` is in the file of stores
  STORAGE_URL_FILE=/run/secrets/storage-url storage ping

Exit codes:
  0    done
  1    error; nothing is stored under this key, for one
  2    the line is wrong: a command, a key, a value, the URL, a file that can't be read
  3    two stores differ
  4    partly done: some records were not taken, or it stopped and --resume goes on
  5    can't open or reach the store, or it does not allow this
  6    the backend can't do this
  130  interrupted; a copy has saved its checkpoint";

/// Looks into the storage of an LLM gateway, and changes it.
#[derive(Parser)]
#[command(name = "storage", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Arguments {
    // Not by clap: it would take the environment's for one on the line.
    /// The store [env: STORAGE_URL, STORAGE_URL_FILE]
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) url: Option<String>,

    /// For people, or as one JSON document
    #[arg(long, global = true, value_enum, default_value_t = Output::Human, help_heading = GLOBAL)]
    pub(crate) output: Output,

    /// Tell on stderr what is done and how long it takes
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) verbose: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const GLOBAL: &str = "Global options";

impl Arguments {
    /// The grammar of the line. What says of itself which stores it is about does not offer `--url`.
    pub(crate) fn grammar() -> clap::Command {
        let grammar = Self::command();
        let url = grammar.get_arguments().find(|argument| argument.get_id() == "url").cloned();
        let hidden = url.map(|url| url.hide(true));
        OWN.iter().fold(grammar, |grammar, name| {
            grammar.mut_subcommand(name, |command| command.args(hidden.clone()))
        })
    }

    /// What the line says.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let mut grammar = Self::grammar();
        let mut line: Vec<OsString> = env::args_os().collect();
        let mut found = grammar.try_get_matches_from_mut(&line);
        // clap's own `help` does not know its --help.
        let asked = ["--help", "-h"].map(OsString::from);
        if line.last().is_some_and(|last| asked.contains(last))
            && found.as_ref().is_err_and(is_unknown_command)
        {
            line.pop();
            found = grammar.try_get_matches_from_mut(&line);
        }
        let mut found = found?;
        Self::from_arg_matches_mut(&mut found).map_err(|error| error.format(&mut grammar))
    }

    /// Why a URL on the line is of no use to this command.
    pub(crate) fn refusal(&self) -> Option<Failure> {
        self.url.as_ref()?;
        let (name, why) = match self.command {
            Command::Copy(_) => ("copy", NAMES),
            Command::Verify(_) => ("verify", NAMES),
            Command::Adopt(_) => ("adopt", NAMES),
            Command::Inspect(_) => ("inspect", "reads a file, and no store"),
            Command::Completions(_) => ("completions", NEEDS_NONE),
            Command::Man(_) => ("man", NEEDS_NONE),
            _ => return None,
        };
        Some(Failure::line(format!("`{name}` takes no --url: it {why}")))
    }
}

/// Whether `--help` was taken for a command.
fn is_unknown_command(error: &clap::Error) -> bool {
    let word = error.get(ContextKind::InvalidSubcommand);
    matches!(word, Some(ContextValue::String(word)) if word.starts_with('-'))
}

/// The commands that take no `--url`.
const OWN: [&str; 6] = ["copy", "verify", "adopt", "inspect", "completions", "man"];
const NAMES: &str = "names both of its stores itself";
const NEEDS_NONE: &str = "needs no store";

#[derive(Subcommand)]
pub(crate) enum Command {
    Ping(Ping),
    Stats(Stats),
    Doctor(Doctor),
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
    History(History),
    Show(Show),
    Revert(Revert),
    Pull(Pull),
    Push(Push),
    #[command(subcommand)]
    Schema(schema::Command),
    Copy(Copy),
    Verify(Verify),
    Adopt(Adopt),
    Export(Export),
    Import(Import),
    Inspect(Inspect),
    Completions(Completions),
    Man(Pages),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Arguments::grammar().debug_assert();
    }
}
