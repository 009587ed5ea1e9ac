//! The schema's versions, and how a database gets to the latest.

use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    Postgres, PostgresOptions,
    session::Session,
    statement::{Parameter, Reply, Sql, column},
};
use crate::{Backend, Error, ErrorKind, Result, backend::remote::Effect};

/// Each leads from the version before it. They are never changed, only added: `{s}` stands for the schema.
const MIGRATIONS: [&str; 2] = [
    // json keeps its text, jsonb does not. Counters change in place: room in the page keeps their index entries.
    "CREATE TABLE {s}.credentials (id text COLLATE \"C\" PRIMARY KEY, value json NOT NULL); \
     CREATE TABLE {s}.configs (key text COLLATE \"C\" PRIMARY KEY, value json NOT NULL); \
     CREATE TABLE {s}.usage (key text COLLATE \"C\", field text COLLATE \"C\", count bigint NOT NULL, \
     PRIMARY KEY (key, field)) WITH (fillfactor = 70)",
    // Plans, and the audit of who applied them.
    "CREATE TABLE {s}.plans (key text COLLATE \"C\" PRIMARY KEY, payload text NOT NULL, mutations bigint NOT NULL, \
     stage text, applied timestamptz NOT NULL, expires timestamptz NOT NULL, rolled_back timestamptz, \
     keys text[] NOT NULL, changes json NOT NULL); \
     CREATE INDEX plans_expires ON {s}.plans (expires); \
     CREATE TABLE {s}.plan_audit (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
     key text COLLATE \"C\" NOT NULL, action text NOT NULL, status text NOT NULL, stage text, source text, \
     finished timestamptz NOT NULL, micros bigint NOT NULL, mutations bigint NOT NULL, payload text, error text)",
];

/// What a database's schema is, and what it could be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SchemaStatus {
    /// The schema's name.
    pub schema: String,
    /// The version that the database has. 0: there is no schema.
    pub version: u32,
    /// The version that this crate works with.
    pub latest: u32,
}

impl SchemaStatus {
    /// Whether a store can be opened on it as it is.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.version == self.latest
    }
}

/// A migration's text can't change without a notice.
fn checksum(migration: &str) -> String {
    Sha256::digest(migration).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// Of all who open a store on this schema at once, one at a time migrates.
fn lock_of(schema: &str) -> i64 {
    let digest = Sha256::digest(format!("gateway-storage schema {schema}"));
    i64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// The version, if everything that was applied is what we would have applied.
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
    /// Compares a database's schema with the one that this crate works with. Changes nothing.
    ///
    /// # Errors
    ///
    /// What the server says, [`Unsupported`](ErrorKind::Unsupported) if a later version of this crate migrated it,
    /// [`Corrupt`](ErrorKind::Corrupt) if it is not ours.
    pub async fn schema_status(config: PostgresOptions) -> Result<SchemaStatus> {
        let postgres = Self::new(config).await?;
        postgres.check_server().await?;
        let version = postgres.version().await?;
        postgres.close().await?;
        Ok(postgres.status(version))
    }

    /// Makes the schema, or brings it to the version that this crate works with. Doing it twice, or at once, is harmless.
    ///
    /// # Errors
    ///
    /// As [`schema_status`](Self::schema_status), and [`Denied`](ErrorKind::Denied) if the role may not create. Nothing is
    /// changed then.
    pub async fn migrate(config: PostgresOptions) -> Result<SchemaStatus> {
        let postgres = Self::new(config).await?;
        postgres.check_server().await?;
        postgres.ready_schema(true).await?;
        postgres.close().await?;
        Ok(postgres.status(MIGRATIONS.len()))
    }

    fn status(&self, version: usize) -> SchemaStatus {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        SchemaStatus {
            schema: self.server.config.schema.clone(),
            version: number(version),
            latest: number(MIGRATIONS.len()),
        }
    }

    async fn version(&self) -> Result<usize> {
        match self.call()?.run(Effect::Read, Sql::Migrations, &[]).await {
            Ok(applied) => version_of(&applied),
            // No schema, or no table in it.
            Err(error) if matches!(error.code(), Some("42P01" | "3F000")) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that the schema is the latest; makes or changes it only if it may.
    pub(super) async fn ready_schema(&self, create: bool) -> Result<()> {
        match self.version().await? {
            version if version == MIGRATIONS.len() => Ok(()),
            _ if create => self.migrate_from_any().await,
            0 => Err(Error::new(ErrorKind::NotFound, "the database has no schema of this crate")),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "the database's schema is of an earlier version of this crate, and must be migrated first",
            )),
        }
    }

    async fn migrate_from_any(&self) -> Result<()> {
        let call = self.call()?;
        let quoted = self.server.config.quoted_schema()?;
        // Held to the end of the transaction, so it is right behind a pooler, too. The call's deadline limits the wait.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; \
             SELECT pg_advisory_xact_lock({})",
            lock_of(&self.server.config.schema)
        );
        let mut session = Session::begin(&call, &begin).await?;
        let found = session.run(&call, Sql::SchemaExists, &[Parameter::Text(&quoted)]).await?;
        // IF NOT EXISTS would want the right to create, even where there is nothing to be done.
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
    fn what_was_released_stays() {
        let checksums = MIGRATIONS.map(checksum);
        let released = [
            "12c481af15e869e9e924f48c49c0f2aeba73ac39315cee3592641d0e19b3d04c",
            "42a4ea657027075609ada43ab94e4bc5a168c142f2df026b37e4de22921c2341",
        ];
        assert_eq!(checksums, released);
    }
}
