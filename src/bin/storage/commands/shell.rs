//! `storage completions` and `storage man`.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{arguments::Arguments, failure::Failure, output::Answer};

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
    pub(crate) fn run(&self) -> Answer {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::grammar(), "storage", &mut script);
        Answer::Bytes(script)
    }
}

/// Print the manual page, or write the pages of all commands to a directory
#[derive(Args)]
#[command(after_help = "\
Examples:
  storage man | man -l -
  storage man ~/.local/share/man/man1        # storage.1, storage-export.1, storage-config-set.1, ..")]
pub(crate) struct Pages {
    /// Directory for all pages; created if it does not exist
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Pages {
    pub(crate) fn run(&self) -> Result<Answer, Failure> {
        let command = Arguments::grammar();
        match &self.directory {
            None => {
                let mut page = Vec::new();
                Man::new(command).render(&mut page).map_err(|error| Failure::unwritten(&error))?;
                Ok(Answer::Bytes(page))
            }
            Some(directory) => {
                let write = || -> io::Result<()> {
                    fs::create_dir_all(directory)?;
                    let mut command = command;
                    command.build();
                    pages(&command, "storage", directory)
                };
                write().map_err(|error| Failure::unwritten_file(directory, &error))?;
                Ok(Answer::Done)
            }
        }
    }
}

/// Writes the page of a command and of its subcommands.
fn pages(command: &clap::Command, name: &str, directory: &std::path::Path) -> io::Result<()> {
    let mut page = Vec::new();
    Man::new(command.clone().display_name(name.to_owned())).title(name).render(&mut page)?;
    fs::File::create(directory.join(format!("{name}.1")))?.write_all(&page)?;
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    inner.into_iter().try_for_each(|inner| pages(inner, &format!("{name}-{}", inner.get_name()), directory))
}
