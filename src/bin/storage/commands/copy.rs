//! `storage copy`.

use clap::Args;
use gateway_storage::Exportable;

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::{
    identity::is_same,
    stores,
    transfer::{copy::Transfer, source},
};

/// Copy all records of one store into another
#[derive(Args)]
#[command(after_help = "\
Other records in the target are kept. By default nothing is written if the target has a different
value for any of the records. Cache values, plans and their audit are not copied. Copying a store
onto itself is refused, because it could undo concurrent writes. The same host under another name
is not detected.

Ctrl-C stops the copy and saves a checkpoint (exit code 130). So does an error that retries do not
resolve (exit code 4). To continue, also after a kill, repeat the command with --resume: it copies
the records since the last checkpoint again, which is saved five times a second.

Examples:
  storage copy file:./data redis://localhost --dry-run
  storage copy file:./data redis://localhost --verify
  storage copy redis://old postgres://gw@new/db --on-conflict skip --rate 5000
  storage copy file:./data file:./team --kinds credentials --include 'team-*'")]
pub(crate) struct Copy {
    /// The store to copy from
    #[arg(value_name = "SRC")]
    source: String,
    /// The store to copy to; created if it does not exist
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    #[command(flatten)]
    transfer: Transfer,
}

impl<B: CliBackend + Exportable> Run<B> for Copy {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        session.options()?;
        let url = stores::resolve(&self.source)?;
        if is_same(&url, session.url) {
            return Err(Failure::usage("source and target are the same store"));
        }
        let source = source::open(&url, session.log).await.map_err(|failure| failure.at("source"))?;
        self.transfer.run(source, session).await
    }
}
