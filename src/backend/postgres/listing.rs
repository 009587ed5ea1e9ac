//! Pages of records, sorted by key. No connection is held between them.

use futures_core::Stream;

use super::{
    Postgres, config, credential,
    statement::{Json, Parameter, Sql, column, counters_of, key},
    usage,
};
use crate::{
    ConfigValue, Credential, Key, Result, UsageRecord,
    backend::remote::{
        Effect,
        listing::{self, PAGE_BYTES, Page},
    },
    model::{KeyRange, ListOptions},
};

/// How many counters of the next records [`Sql::PageRecords`] considers.
const COUNTERS_PER_PAGE: usize = 1000;

fn number(number: usize) -> Parameter<'static> {
    Parameter::Number(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The parameters of a page of documents: see [`Sql::PageCredentials`].
pub(super) fn documents_of(range: &KeyRange, most: usize) -> [Parameter<'_>; 5] {
    // No key is empty.
    let without = if range.has_first() { "" } else { range.first() };
    let [first, without, end] = [range.first(), without, range.end()].map(Parameter::Text);
    [first, without, end, number(most), number(PAGE_BYTES)]
}

impl Postgres {
    pub(super) fn list<'p, V: Send, F: Future<Output = Result<Page<V>>> + Send>(
        &'p self,
        mut options: ListOptions,
        page: impl Fn(&'p Self, KeyRange, usize) -> F + Send,
    ) -> impl Stream<Item = Result<(Key, V)>> + Send {
        if options.prefix.contains('\0') {
            // No key begins so, and the server refuses the text.
            options.limit = Some(0);
        }
        listing::list(options, move |range, most| page(self, range, most))
    }

    async fn page_of_documents<V>(
        &self,
        statement: Sql,
        (range, most): (KeyRange, usize),
        read: fn(&Key, &tokio_postgres::Row, usize) -> Result<V>,
    ) -> Result<Page<V>> {
        let reply = self.call()?.run(Effect::Read, statement, &documents_of(&range, most)).await?;
        let mut bytes = 0;
        let document = |row| {
            let Json(text) = column(row, 1)?;
            bytes += text.len();
            let key = key(row, 0)?;
            let value = read(&key, row, 1)?;
            Ok((key, value))
        };
        let records = reply.rows.iter().map(document).collect::<Result<Vec<_>>>()?;
        let is_last = records.len() < most && bytes < PAGE_BYTES;
        Ok(Page { records, is_last })
    }

    pub(super) async fn page_of_credentials(&self, range: KeyRange, most: usize) -> Result<Page<Credential>> {
        self.page_of_documents(Sql::PageCredentials, (range, most), credential::read).await
    }

    pub(super) async fn page_of_configs(&self, range: KeyRange, most: usize) -> Result<Page<ConfigValue>> {
        self.page_of_documents(Sql::PageConfigs, (range, most), config::read).await
    }

    pub(super) async fn page_of_usage(&self, range: KeyRange, most: usize) -> Result<Page<UsageRecord>> {
        let parameters: Vec<_> = counters_of(&range).into_iter().chain([number(most)]).collect();
        let reply = self.call()?.run(Effect::Read, Sql::PageRecords, &parameters).await?;
        let records = usage::records(&reply.rows)?.into_iter().map(|(key, record)| Ok((key, record?)));
        let records = records.collect::<Result<Vec<_>>>()?;
        let is_last = reply.rows.len() < COUNTERS_PER_PAGE && records.len() < most;
        Ok(Page { records, is_last })
    }
}
