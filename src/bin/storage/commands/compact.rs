//! `storage compact`.

use clap::Args;

/// Return the space of deleted records of a `file:` store to the file system
#[derive(Args)]
#[command(after_help = "\
A gateway that has the store open goes on meanwhile. The file system needs room for a copy of what the
store holds. `doctor --check` shows how much of the file is free.

Examples:
  storage compact
  storage compact --output json | jq .freed_bytes")]
pub(crate) struct Compact {}

#[cfg(feature = "file")]
mod file {
    use gateway_storage::File;
    use serde_json::json;

    use super::{
        super::{Answer, Failure, Run, Session},
        Compact,
    };
    use crate::term::text::size;

    impl Run<File> for Compact {
        async fn run(&self, session: &Session<'_, File>) -> Result<Answer, Failure> {
            let freed = session.open().await?.backend().inner().compact().await?;
            Ok(Answer::report(vec![("freed".into(), size(freed))], json!({ "freed_bytes": freed })))
        }
    }
}
