//! Exports from one snapshot in bounded memory, and imports.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{
    CONCURRENT_CHUNKS, Postgres, config, credential,
    server::Call,
    session::Session,
    statement::{Parameter, Sql, column, key},
};
use crate::{
    BatchReport, Error, Exportable, Key, Record, Result,
    backend::remote::{Effect, batch, keyed::Records, pages::pages},
    codec::{encode_config, encode_credential},
};

/// Without the idle timeout, since a consumer may pause between records.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL idle_in_transaction_session_timeout = 0";

/// The position of an export: a kind, and the last key read. It is empty at the start: no key is.
#[derive(Clone)]
enum Position {
    Credentials(String),
    Configs(String),
    Usage(String, String),
    End,
}

/// A page of documents ends after this many of them, or with the one that exceeds this many bytes.
const PAGE: i64 = 250;
const PAGE_BYTES: i64 = 4 << 20;

struct Export {
    postgres: Postgres,
    session: Option<Session>,
    position: Position,
    /// How many documents the server considers for the next page: it reads all of them to know their sizes.
    limit: i64,
}

impl Export {
    /// The next page, and the export after it.
    async fn next(mut self) -> Result<Option<(Vec<Record>, Self)>> {
        if matches!(self.position, Position::End) {
            return Ok(None);
        }
        let page = self.read_page().await?;
        self.limit = PAGE.min(2 * page.len() as i64).max(1);
        self.position = match (page.last(), &self.position) {
            (Some(Record::Credential { id, .. }), _) => Position::Credentials(id.as_str().to_owned()),
            (Some(Record::Config { key, .. }), _) => Position::Configs(key.as_str().to_owned()),
            (Some(Record::Usage { key, field, .. }), _) => {
                Position::Usage(key.as_str().to_owned(), field.as_str().to_owned())
            }
            (None, Position::Credentials(_)) => Position::Configs(String::new()),
            (None, Position::Configs(_)) => Position::Usage(String::new(), String::new()),
            (None, Position::Usage(..) | Position::End) => Position::End,
        };
        Ok(Some((page, self)))
    }

    async fn read_page(&mut self) -> Result<Vec<Record>> {
        let postgres = self.postgres.clone();
        let call = postgres.call()?;
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(Session::begin(&call, BEGIN).await?),
        };
        let (limit, bytes) = (Parameter::Number(self.limit), Parameter::Number(PAGE_BYTES));
        let (statement, after) = match &self.position {
            Position::Credentials(id) => (Sql::PageCredentials, vec![Parameter::Text(id), limit, bytes]),
            Position::Configs(key) => (Sql::PageConfigs, vec![Parameter::Text(key), limit, bytes]),
            Position::Usage(key, field) => {
                (Sql::PageUsage, vec![Parameter::Text(key), Parameter::Text(field)])
            }
            Position::End => return Ok(Vec::new()),
        };
        let reply = session.run(&call, statement, &after).await?;
        reply
            .rows
            .iter()
            .map(|row| {
                let key = key(row, 0)?;
                Ok(match self.position {
                    Position::Credentials(_) => {
                        Record::Credential { credential: credential::read(&key, row, 1)?, id: key }
                    }
                    Position::Configs(_) => Record::Config { value: config::read(&key, row, 1)?, key },
                    Position::Usage(..) | Position::End => {
                        Record::Usage { key, field: super::statement::key(row, 1)?, count: column(row, 2)? }
                    }
                })
            })
            .collect()
    }
}

async fn set_counters<'k>(
    call: &Call<'_>,
    counters: &[((&'k Key, &'k Key), i64)],
) -> BTreeMap<(&'k Key, &'k Key), Error> {
    let chunks = batch::run(
        counters,
        |_| 0,
        CONCURRENT_CHUNKS,
        |chunk| async move {
            let keys = chunk.iter().map(|((key, _), _)| key.as_str()).collect();
            let fields = chunk.iter().map(|((_, field), _)| field.as_str()).collect();
            let counts = chunk.iter().map(|(_, count)| *count).collect();
            let counters = [Parameter::Texts(keys), Parameter::Texts(fields), Parameter::Numbers(counts)];
            call.run(Effect::Write, Sql::SetCounters, &counters).await
        },
    );
    credential::failures(chunks.await)
}

impl Exportable for Postgres {
    /// A snapshot, taken when the stream is first polled. It holds a connection until it ends or is dropped.
    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let export = Export {
            postgres: self.clone(),
            session: None,
            position: Position::Credentials(String::new()),
            limit: PAGE,
        };
        pages(export, Export::next)
    }

    fn exports_snapshot(&self) -> bool {
        true
    }

    /// True unless the pool has only one connection.
    fn imports_while_exporting(&self) -> bool {
        self.server.pool().map_or(true, |pool| pool.stats().max > 1)
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let call = self.call()?;
        let Records { credentials, configs, counters } = Records::of(records);
        let credentials: Vec<_> =
            credentials.into_iter().map(|(id, credential)| (id, encode_credential(credential))).collect();
        let configs: Vec<_> = configs.into_iter().map(|(key, value)| (key, encode_config(value))).collect();
        let counters: Vec<_> = counters.into_iter().collect();
        let credentials = credential::set_documents(&call, Sql::SetCredentials, &credentials).await;
        let configs = credential::set_documents(&call, Sql::SetConfigs, &configs).await;
        let counters = set_counters(&call, &counters).await;
        let failed = |record: &Record| match record {
            Record::Credential { id, .. } => credentials.get(id).cloned(),
            Record::Config { key, .. } => configs.get(key).cloned(),
            Record::Usage { key, field, .. } => counters.get(&(key, field)).cloned(),
        };
        batch::report_each(records.iter().map(|record| (record.key(), failed(record))))
    }
}
