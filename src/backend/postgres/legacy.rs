//! Reads the tables of the Go program row by row, so that a row that can't be read does not hide the others.

use std::{collections::BTreeMap, vec};

use futures_core::Stream;
use tokio_postgres::Row;

use super::{
    Postgres, PostgresOptions, config, credential,
    session::Session,
    statement::{Json, Parameter, Sql, column},
};
use crate::{
    Backend, Credential, Error, ErrorKind, Key, Record, Result, backend::remote::Effect, capability::pages,
    model::Piece,
};

/// One snapshot, with a cursor per table: their indexes have the database's collation, not byte order.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0";

/// The tables in the order in which they are read.
const TABLES: [Table; 4] = [
    Table {
        name: "credentials",
        columns: &["data", "filename"],
        query: "SELECT filename::text, data::json FROM {t} ORDER BY filename::text COLLATE \"C\"",
        fetch: Sql::FetchLegacyCredentials,
    },
    Table {
        name: "credential_states",
        columns: &["filename"],
        query: "SELECT filename::text FROM {t} ORDER BY filename::text COLLATE \"C\"",
        fetch: Sql::FetchLegacyStates,
    },
    Table {
        name: "configs",
        columns: &["config_key", "value"],
        query: "SELECT config_key::text, value::json FROM {t} ORDER BY config_key::text COLLATE \"C\"",
        fetch: Sql::FetchLegacyConfigs,
    },
    Table {
        name: "usage_stats",
        columns: &["field", "usage_key", "value"],
        query: "SELECT usage_key::text, field::text, value::text FROM {t} \
            ORDER BY usage_key::text COLLATE \"C\", field::text COLLATE \"C\"",
        fetch: Sql::FetchLegacyUsage,
    },
];

#[derive(Clone, Copy)]
struct Table {
    name: &'static str,
    /// The columns that it must have.
    columns: &'static [&'static str],
    query: &'static str,
    /// Reads the next page from the cursor.
    fetch: Sql,
}

/// The default schema of the Go program.
const SCHEMA: &str = "public";

impl Postgres {
    /// A handle for reading the Go program's tables. It neither expects nor creates a schema of this crate.
    pub(crate) async fn open_legacy(url: &str) -> Result<Self> {
        let postgres = Self::new(PostgresOptions::in_schema(url, Some(SCHEMA))?, false).await?;
        postgres.check_server().await?;
        let found = postgres.legacy_tables().await;
        match found {
            Ok((found, _)) if !found.is_empty() => Ok(postgres),
            found => {
                postgres.close().await?;
                found.and_then(|_| {
                    Err(Error::new(
                        ErrorKind::NotFound,
                        "the schema holds none of the Go program's tables (`credentials` with `filename` and `data`, \
                         `configs`, `usage_stats`); the URL option `schema` selects another schema",
                    ))
                })
            }
        }
    }

    /// Streams the sorted records of the tables, and a remark for every other row, from one snapshot.
    pub(crate) fn legacy(&self) -> impl Stream<Item = Result<Piece>> + Send + 'static {
        pages(Adoption { postgres: self.clone(), reading: None }, Adoption::next)
    }

    /// Finds the tables of the layout that have their columns, and makes remarks about all others.
    async fn legacy_tables(&self) -> Result<(Vec<Table>, Vec<Piece>)> {
        let schema = [Parameter::Text(&self.server.options.schema)];
        let reply = self.call()?.run(Effect::Read, Sql::LegacyColumns, &schema).await?;
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in &reply.rows {
            found.entry(column(row, 0)?).or_default().push(column(row, 1)?);
        }
        let has = |table: &Table| {
            let columns = found.get(table.name);
            columns.is_some_and(|columns| {
                table.columns.iter().all(|wanted| columns.iter().any(|column| column == wanted))
            })
        };
        let tables: Vec<Table> = TABLES.into_iter().filter(has).collect();
        let times_remark = |table: &Table| {
            let is_time = |column: &String| TIMES.contains(&column.as_str());
            let has_times = found.get(table.name).is_some_and(|columns| columns.iter().any(is_time));
            has_times.then(|| Piece::left_out(table.name, "the columns with times of changes"))
        };
        let mut remarks: Vec<Piece> = tables.iter().filter_map(times_remark).collect();
        for (name, columns) in &found {
            remarks.push(match name.as_str() {
                name if tables.iter().any(|table| table.name == name) => continue,
                name if TABLES.iter().any(|table| table.name == name) => Piece::not_understood(
                    name,
                    "a table of this name without the columns that the Go program made",
                ),
                "schema_migrations" if columns.iter().any(|column| column == "dirty") => {
                    Piece::left_out(name.as_str(), "the version of the Go program's tables")
                }
                name => Piece::left_out(name, "a table that is no part of the layout"),
            });
        }
        Ok((tables, remarks))
    }
}

const TIMES: [&str; 2] = ["created_at", "updated_at"];

struct Adoption {
    postgres: Postgres,
    /// None before the first page.
    reading: Option<(Session, vec::IntoIter<Table>)>,
}

impl Adoption {
    /// The next page, and the adoption after it.
    async fn next(mut self) -> Result<Option<(Vec<Piece>, Self)>> {
        let Some((session, tables)) = &mut self.reading else {
            let remarks = self.begin().await?;
            return Ok(Some((remarks, self)));
        };
        let Some(table) = tables.as_slice().first().copied() else { return Ok(None) };
        let reply = session.run(&self.postgres.call()?, table.fetch, &[]).await?;
        if reply.rows.is_empty() {
            tables.next();
        }
        let mut page = Vec::with_capacity(reply.rows.len());
        reply.rows.iter().try_for_each(|row| read(table, row, &mut page))?;
        Ok(Some((page, self)))
    }

    /// Opens the cursors, and returns the remarks.
    async fn begin(&mut self) -> Result<Vec<Piece>> {
        let (tables, remarks) = self.postgres.legacy_tables().await?;
        let call = self.postgres.call()?;
        let schema = self.postgres.server.options.quoted_schema()?;
        let mut session = Session::begin(&call, BEGIN).await?;
        for table in &tables {
            let query = table.query.replace("{t}", &format!("{schema}.{}", table.name));
            let declare = format!("DECLARE legacy_{} NO SCROLL CURSOR FOR {query}", table.name);
            session.execute(&call, Effect::Read, &declare).await?;
        }
        self.reading = Some((session, tables.into_iter()));
        Ok(remarks)
    }
}

fn read(table: Table, row: &Row, pieces: &mut Vec<Piece>) -> Result<()> {
    let name: &str = column(row, 0)?;
    let location = format!("{} {name}", table.name);
    let key = match Key::new(name) {
        Ok(key) => key,
        Err(error) => {
            pieces.push(Piece::unreadable(location, &error));
            return Ok(());
        }
    };
    let document = || column::<Option<Json<'_>>>(row, 1).map(|document| document.is_some());
    let piece = match table.fetch {
        Sql::FetchLegacyCredentials | Sql::FetchLegacyConfigs if !document()? => {
            Piece::not_understood(location, "the value is NULL")
        }
        Sql::FetchLegacyCredentials => {
            let credential = credential::read(&key, row, 1);
            if credential.as_ref().is_ok_and(is_stripped) {
                pieces.push(Piece::changed(location.clone(), STRIPPED));
            }
            of_document(location, credential.map(|credential| Record::Credential { id: key, credential }))?
        }
        Sql::FetchLegacyConfigs => {
            of_document(location, config::read(&key, row, 1).map(|value| Record::Config { key, value }))?
        }
        Sql::FetchLegacyUsage => {
            let field: &str = column(row, 1)?;
            let location = format!("{location} {field}");
            let count: Option<&str> = column(row, 2)?;
            match (Key::new(field), count.and_then(|count| count.parse().ok())) {
                (Ok(field), Some(count)) => Piece::Record(Record::Usage { key, field, count }),
                (Err(error), _) => Piece::unreadable(location, &error),
                (Ok(_), None) => Piece::not_understood(location, "the counter is not an integer of 64 bits"),
            }
        }
        _ => Piece::left_out(location, "the state of a credential, which only the Go program understood"),
    };
    pieces.push(piece);
    Ok(())
}

fn of_document(location: String, read: Result<Record>) -> Result<Piece> {
    match read {
        Ok(record) => Ok(Piece::Record(record)),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Piece::unreadable(location, &error)),
        Err(error) => Err(error),
    }
}

const STRIPPED: &str = "it is adopted as it is stored, but has no token: the Go program wrote it back without the fields that \
    it did not know";

/// Whether the Go program wrote a credential back without the fields that it did not know.
fn is_stripped(credential: &Credential) -> bool {
    let is = |name: &str, text: &str| credential.get(name).is_some_and(|value| value == text);
    let no_token = credential.get("access_token").is_none_or(|token| token == "");
    no_token && is("refresh_token", "") && is("expires_at", "0001-01-01T00:00:00Z")
}
