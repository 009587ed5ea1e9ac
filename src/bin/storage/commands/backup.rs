//! `storage backup`.

use std::path::PathBuf;

use clap::Args;

/// Copy a `file:` store to a new directory while it is used
#[derive(Args)]
#[command(after_help = "\
The copy is a store: one state of all records, plans, their audit and leases, with verified checksums. A
gateway that has the store open goes on meanwhile. To restore, open the copy, or move it to where the store
was while no process has that open. Ctrl-C leaves no copy. For other backends, use `export`.

Examples:
  storage backup /var/backups/gateway-$(date +%F)
  storage backup ./copy --output json | jq .records
  storage --url file:./copy stats")]
pub(crate) struct Backup {
    /// A new or empty directory
    directory: PathBuf,
}

#[cfg(feature = "file")]
mod file {
    use gateway_storage::File;
    use serde_json::json;

    use super::{
        super::{Answer, Failure, Run, Session},
        Backup,
    };
    use crate::term::text::{grouped, size};

    impl Run<File> for Backup {
        async fn run(&self, session: &Session<'_, File>) -> Result<Answer, Failure> {
            let report = session.read().await?.backend().inner().backup(&self.directory).await?;
            let mut rows = vec![
                ("backup".into(), report.path.display().to_string()),
                ("records".into(), grouped(report.records)),
                ("size".into(), size(report.bytes)),
            ];
            if !report.is_recorded {
                rows.push((
                    "note".into(),
                    "the store can't be written, so it has not the time of this".into(),
                ));
            }
            Ok(Answer::report(rows, json!(report)))
        }
    }
}
