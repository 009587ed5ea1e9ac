//! `storage schema`.

use clap::Subcommand;
#[cfg(feature = "postgres")]
use gateway_storage::{Postgres, postgres::SchemaStatus};
use serde_json::json;

use super::{Answer, Failure, Run, Session};

/// Show or migrate the tables of a database
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the schema's version and the version that this command needs
    #[command(after_help = "\
Examples:
  storage schema status
  storage schema status --output json | jq .current")]
    Status,
    /// Create the schema, or migrate it to the version that this command needs
    #[command(after_help = "\
Examples:
  storage schema up
  storage schema up && systemctl start gateway
  storage schema up --watch")]
    Up {
        /// Also create the tables and triggers that a first watch creates
        #[arg(long)]
        watch: bool,
    },
}

#[cfg(feature = "postgres")]
impl Run<Postgres> for Command {
    async fn run(&self, session: &Session<'_, Postgres>) -> Result<Answer, Failure> {
        let options = session.options()?;
        let status = match self {
            Self::Status => Postgres::schema_status(options).await,
            Self::Up { watch: false } => Postgres::migrate(options).await,
            Self::Up { watch: true } => match Postgres::migrate(options.clone()).await {
                Ok(status) => Postgres::prepare_watch(options).await.map(|()| status),
                refused => refused,
            },
        };
        Ok(report(&status.map_err(|error| Failure::opening(session.url, &error))?))
    }
}

#[cfg(feature = "postgres")]
fn report(status: &SchemaStatus) -> Answer {
    let SchemaStatus { schema, version, latest, .. } = status;
    let state = match version {
        _ if status.is_current() => "current",
        0 => "missing: `storage schema up` creates it",
        _ => "old: `storage schema up` migrates it",
    };
    Answer::report(
        vec![
            ("schema".into(), schema.clone()),
            ("version".into(), format!("{version} of {latest}")),
            ("state".into(), state.into()),
        ],
        json!({ "schema": schema, "version": version, "latest": latest, "current": status.is_current() }),
    )
}
