//! Exports from one snapshot in bounded memory, and imports.

use std::collections::BTreeMap;

use futures_core::Stream;

use super::{
    CONCURRENT_CHUNKS, Postgres, config, credential,
    listing::documents_of,
    server::Call,
    session::Session,
    statement::{Parameter, Sql, column, key as name},
};
use crate::{
    BatchReport, Error, Exportable, Key, Record, Result,
    backend::remote::{
        Effect, batch,
        keyed::{EXPORTED, Records},
        listing::PAGE,
    },
    capability::pages,
    codec::{encode_config, encode_credential},
    error::Kind,
    model::KeyRange,
};

/// Without the idle timeout, since a consumer may pause between records.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL idle_in_transaction_session_timeout = 0";

struct Export {
    postgres: Postgres,
    session: Option<Session>,
    /// The kinds of records that are left, the current one first.
    kinds: &'static [Kind],
    /// The last record of the current kind that was read.
    last: Option<Record>,
    /// How many documents the server considers for the next page: it reads all of them to know their sizes.
    limit: usize,
}

impl Export {
    /// The next page, and the export after it.
    async fn next(mut self) -> Result<Option<(Vec<Record>, Self)>> {
        let [kind, left @ ..] = self.kinds else { return Ok(None) };
        let page = self.read_page(*kind).await?;
        self.limit = PAGE.min(2 * page.len()).max(1);
        self.last = page.last().cloned();
        if page.is_empty() {
            self.kinds = left;
        }
        Ok(Some((page, self)))
    }

    async fn read_page(&mut self, kind: Kind) -> Result<Vec<Record>> {
        let postgres = self.postgres.clone();
        let call = postgres.call()?;
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(Session::begin(&call, BEGIN).await?),
        };
        let mut range = KeyRange::of_prefix("");
        if let Some(last) = &self.last {
            range.begin_after(last.key());
        }
        let (statement, after) = match (kind, &self.last) {
            (Kind::Credential, _) => (Sql::PageCredentials, documents_of(&range, self.limit).into()),
            (Kind::Config, _) => (Sql::PageConfigs, documents_of(&range, self.limit).into()),
            (_, Some(Record::Usage { key, field, .. })) => {
                (Sql::PageUsage, vec![Parameter::Text(key.as_str()), Parameter::Text(field.as_str())])
            }
            // No key is empty.
            _ => (Sql::PageUsage, vec![Parameter::Text(""), Parameter::Text("")]),
        };
        let reply = session.run(&call, statement, &after).await?;
        reply
            .rows
            .iter()
            .map(|row| {
                let key = name(row, 0)?;
                Ok(match kind {
                    Kind::Credential => {
                        Record::Credential { credential: credential::read(&key, row, 1)?, id: key }
                    }
                    Kind::Config => Record::Config { value: config::read(&key, row, 1)?, key },
                    Kind::Usage | Kind::Cache => {
                        Record::Usage { key, field: name(row, 1)?, count: column(row, 2)? }
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
        let export =
            Export { postgres: self.clone(), session: None, kinds: &EXPORTED, last: None, limit: PAGE };
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
        let counters: Vec<_> = counters.into_iter().collect();
        let credentials =
            credential::set_documents(&call, Sql::SetCredentials, credentials, encode_credential).await;
        let configs = credential::set_documents(&call, Sql::SetConfigs, configs, encode_config).await;
        let counters = set_counters(&call, &counters).await;
        let failed = |record: &Record| match record {
            Record::Credential { id, .. } => credentials.get(id).cloned(),
            Record::Config { key, .. } => configs.get(key).cloned(),
            Record::Usage { key, field, .. } => counters.get(&(key, field)).cloned(),
        };
        batch::report_each(records.iter().map(|record| (record.key(), failed(record))))
    }
}
