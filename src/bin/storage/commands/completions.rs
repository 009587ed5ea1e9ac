//! `storage completions`.

use clap::Args;
use clap_complete::{Shell, generate};

use super::Answer;

/// Generate shell completions
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage completions bash > ~/.local/share/bash-completion/completions/storage
  storage completions zsh > ~/.zfunc/_storage       # `fpath+=~/.zfunc` before compinit
  storage completions fish > ~/.config/fish/completions/storage.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Generates the completions for a grammar.
    pub(crate) fn run(&self, mut grammar: clap::Command) -> Answer {
        let mut script = Vec::new();
        generate(self.shell, &mut grammar, "storage", &mut script);
        Answer::Bytes(script)
    }
}
