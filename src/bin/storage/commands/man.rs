//! `storage man`.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Command};
use clap_mangen::Man;

use super::{Answer, Failure};

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
    /// Writes the pages of a grammar.
    pub(crate) fn run(&self, mut grammar: Command) -> Result<Answer, Failure> {
        match &self.directory {
            None => {
                let mut page = Vec::new();
                Man::new(grammar).render(&mut page).map_err(|error| Failure::unwritten(&error))?;
                Ok(Answer::Bytes(page))
            }
            Some(directory) => {
                grammar.build();
                fs::create_dir_all(directory)
                    .and_then(|()| pages(&grammar, "storage", directory))
                    .map_err(|error| Failure::unwritten_file(directory, &error))?;
                Ok(Answer::Done)
            }
        }
    }
}

/// Writes the page of a command and of its subcommands.
fn pages(command: &Command, name: &str, directory: &Path) -> io::Result<()> {
    let mut page = Vec::new();
    Man::new(command.clone().display_name(name.to_owned())).title(name).render(&mut page)?;
    fs::File::create(directory.join(format!("{name}.1")))?.write_all(&page)?;
    let mut inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    inner.try_for_each(|inner| pages(inner, &format!("{name}-{}", inner.get_name()), directory))
}
