//! The versions of the schema, and the migration to the latest.

use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    Postgres, PostgresOptions,
    session::Session,
    settings::lock_of,
    statement::{Parameter, Reply, Sql, column},
};
use crate::{Backend, Error, ErrorKind, Result, backend::remote::Effect};

/// Each migrates from the version before it. Released migrations never change. `{s}` stands for the schema.
///
/// None may write records: bb8-postgres logs what a trigger raises.
const MIGRATIONS: [&str; 3] = [
    // `json` keeps its text, `jsonb` does not. Counters are updated often: with free space in the page (HOT
    // updates), their index entries stay.
    "CREATE TABLE {s}.credentials (id text COLLATE \"C\" PRIMARY KEY, value json NOT NULL); \
     CREATE TABLE {s}.configs (key text COLLATE \"C\" PRIMARY KEY, value json NOT NULL); \
     CREATE TABLE {s}.usage (key text COLLATE \"C\", field text COLLATE \"C\", count bigint NOT NULL, \
     PRIMARY KEY (key, field)) WITH (fillfactor = 70)",
    // Plans and their audit.
    "CREATE TABLE {s}.plans (key text COLLATE \"C\" PRIMARY KEY, payload text NOT NULL, mutations bigint NOT NULL, \
     stage text, applied timestamptz NOT NULL, expires timestamptz NOT NULL, rolled_back timestamptz, \
     keys text[] NOT NULL, changes json NOT NULL); \
     CREATE INDEX plans_expires ON {s}.plans (expires); \
     CREATE TABLE {s}.plan_audit (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
     key text COLLATE \"C\" NOT NULL, action text NOT NULL, status text NOT NULL, stage text, source text, \
     finished timestamptz NOT NULL, micros bigint NOT NULL, mutations bigint NOT NULL, payload text, error text)",
    // Leases. One that rests has no holder. Free space in the page and no index on `ends` let a renewal be a
    // HOT update.
    "CREATE TABLE {s}.leases (name text COLLATE \"C\" PRIMARY KEY, holder text, number bigint NOT NULL, \
     ends timestamptz NOT NULL) WITH (fillfactor = 70)",
];

/// The schema version of a database, and the one that this crate needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SchemaStatus {
    /// The schema's name.
    pub schema: String,
    /// The version in the database. 0: the schema does not exist.
    pub version: u32,
    /// The version that this crate works with.
    pub latest: u32,
}

impl SchemaStatus {
    /// Whether a store can be opened without a migration.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.version == self.latest
    }
}

/// Detects a change of a migration's text.
fn checksum(migration: &str) -> String {
    Sha256::digest(migration).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

/// The version, if the applied migrations are those of this crate.
fn version_of(applied: &Reply) -> Result<usize> {
    for (at, row) in applied.rows.iter().enumerate() {
        let (version, found): (i64, &str) = (column(row, 0)?, column(row, 1)?);
        match MIGRATIONS.get(at) {
            None => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the database was migrated by a later version of this crate",
                ));
            }
            Some(known) if version != at as i64 + 1 || found != checksum(known) => {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the database's schema was not made by this crate: a migration's checksum differs",
                ));
            }
            Some(_) => {}
        }
    }
    Ok(applied.rows.len())
}

impl Postgres {
    /// Reports the schema version of a database. Changes nothing.
    ///
    /// # Errors
    ///
    /// Errors of the server, [`Unsupported`](ErrorKind::Unsupported) if a later version of this crate
    /// migrated the database, [`Corrupt`](ErrorKind::Corrupt) if the schema is not of this crate.
    pub async fn schema_status(options: PostgresOptions) -> Result<SchemaStatus> {
        let postgres = Self::new(options, true).await?;
        postgres.check_server().await?;
        let version = postgres.version().await?;
        postgres.close().await?;
        Ok(postgres.status(version))
    }

    /// Creates the schema, or migrates it to the latest version. Safe to repeat and to run concurrently.
    ///
    /// # Errors
    ///
    /// As [`schema_status`](Self::schema_status), and [`Denied`](ErrorKind::Denied) if the role may not
    /// create the schema. An error means that nothing changed.
    pub async fn migrate(options: PostgresOptions) -> Result<SchemaStatus> {
        let postgres = Self::new(options, true).await?;
        postgres.check_server().await?;
        if postgres.version().await? < MIGRATIONS.len() {
            postgres.migrate_schema().await?;
        }
        postgres.close().await?;
        Ok(postgres.status(MIGRATIONS.len()))
    }

    fn status(&self, version: usize) -> SchemaStatus {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        SchemaStatus {
            schema: self.server.options.schema.clone(),
            version: number(version),
            latest: number(MIGRATIONS.len()),
        }
    }

    async fn version(&self) -> Result<usize> {
        match self.call()?.run(Effect::Read, Sql::Migrations, &[]).await {
            Ok(applied) => version_of(&applied),
            // The schema or its table does not exist.
            Err(error) if matches!(error.code(), Some("42P01" | "3F000")) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Whether the schema is the latest. An error if it is not, and the options do not let it be migrated.
    pub(super) async fn has_latest_schema(&self) -> Result<bool> {
        match self.version().await? {
            version if version == MIGRATIONS.len() => Ok(true),
            _ if self.server.options.create => Ok(false),
            0 => Err(Error::new(ErrorKind::NotFound, "the database has no schema of this crate")),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "the database's schema is of an earlier version of this crate and must be migrated first",
            )),
        }
    }

    async fn migrate_schema(&self) -> Result<()> {
        let call = self.call()?;
        let quoted = self.server.options.quoted_schema()?;
        // The lock belongs to the transaction, as a pooler requires. The call's deadline limits the wait.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; \
             SET LOCAL client_min_messages = error; SELECT pg_advisory_xact_lock({})",
            lock_of(&self.server.options.schema)
        );
        let mut session = Session::begin(&call, &begin).await?;
        let found = session.run(&call, Sql::SchemaExists, &[Parameter::Text(&quoted)]).await?;
        // `CREATE SCHEMA IF NOT EXISTS` would need the privilege to create even if the schema exists.
        if !column::<bool>(found.row()?, 0)? {
            session.execute(&call, Effect::Read, &format!("CREATE SCHEMA {quoted}")).await?;
        }
        let table = format!(
            "CREATE TABLE IF NOT EXISTS {quoted}.schema_migrations \
             (version int PRIMARY KEY, checksum text NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
        );
        session.execute(&call, Effect::Read, &table).await?;
        let version = version_of(&session.run(&call, Sql::Migrations, &[]).await?)?;
        for (at, migration) in MIGRATIONS.iter().enumerate().skip(version) {
            session.execute(&call, Effect::Read, &migration.replace("{s}", &quoted)).await?;
            let checksum = checksum(migration);
            let record = [Parameter::Number(at as i64 + 1), Parameter::Text(&checksum)];
            session.run(&call, Sql::RecordMigration, &record).await?;
        }
        session.commit(&call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_migrations_do_not_change() {
        let checksums = MIGRATIONS.map(checksum);
        let released = [
            "12c481af15e869e9e924f48c49c0f2aeba73ac39315cee3592641d0e19b3d04c",
            "42a4ea657027075609ada43ab94e4bc5a168c142f2df026b37e4de22921c2341",
            "f0d06c75f85118399955d1cc12cad2093ba4cfd1d19611527d4e5abad2b62b94",
        ];
        assert_eq!(checksums, released);
    }
}
