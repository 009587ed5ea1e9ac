//! `storage copy`.

use clap::Args;
use gateway_storage::Exportable;

use super::Run;
use crate::{
    backends::{self, Operated},
    door::Door,
    failure::Failure,
    output::Answer,
    place::is_same,
    stores,
    transfer::Transfer,
};

/// Copy all records of one store into another
#[derive(Args)]
#[command(after_help = "\
What else the target holds stays. By default nothing is written if the target has one of the records with another value. Cache
values, plans and their audit are not copied. A store is not copied onto itself, which would undo what others write
meanwhile: but under another name of its host it is not known again.

Ctrl-C ends it in order (exit code 130) and saves its place, and so does what can't go on (4); a copy that is killed has saved it
a moment before. The same line with --resume goes on.

Examples:
  storage copy file:./data redis://localhost --dry-run
  storage copy file:./data redis://localhost --verify
  storage copy redis://old postgres://gw@new/db --on-conflict skip --rate 5000
  storage copy file:./data file:./team --kinds credentials --include 'team-*'")]
pub(crate) struct Copy {
    /// The store to copy from
    #[arg(value_name = "SRC")]
    source: String,
    /// The store to copy to; it is made if it is not there
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    #[command(flatten)]
    transfer: Transfer,
}

impl<B: Operated + Exportable> Run<B> for Copy {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        door.config()?;
        if is_same(&stores::resolve(&self.source)?, door.url()) {
            return Err(Failure::line("source and target are the same store"));
        }
        let source =
            backends::source(&self.source, door.log()).await.map_err(|failure| failure.at("source"))?;
        self.transfer.run(source, door).await
    }
}
