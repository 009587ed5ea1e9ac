//! Conditional writes: a revision is the digest of a row's text, and the server compares.

use super::{
    Postgres, config, credential,
    statement::{Json, Parameter, Reply, Sql, column},
};
use crate::{
    Error, Key, Record, Result,
    backend::remote::Effect,
    capability::{Conditional, Wake, document_of},
    error::Kind,
    history::DocumentKind,
    model::{Condition, Revision},
};

impl Postgres {
    async fn run_keyed(
        &self,
        effect: Effect,
        statement: Sql,
        key: &Key,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        let reply = self.call()?.run(effect, statement, parameters).await;
        reply.map_err(|error| error.with_key(key))
    }
}

impl Conditional for Postgres {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let (missing, statement) = match kind {
            DocumentKind::Credential => (Kind::Credential, Sql::GetCredential),
            DocumentKind::Config => (Kind::Config, Sql::GetConfig),
        };
        let name = [Parameter::Text(key.as_str())];
        let reply = self.run_keyed(Effect::Read, statement, key, &name).await?;
        let row = reply.rows.first().ok_or_else(|| Error::not_found(missing, key))?;
        let Json(text) = column(row, 0)?;
        let record = match kind {
            DocumentKind::Credential => {
                Record::Credential { id: key.clone(), credential: credential::read(key, row, 0)? }
            }
            DocumentKind::Config => Record::Config { key: key.clone(), value: config::read(key, row, 0)? },
        };
        Ok((record, Revision::of(text)))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, text) = document_of(record)?;
        let mut parameters = vec![Parameter::Text(key.as_str()), Parameter::Json(&text)];
        if let Condition::Unchanged(expected) = condition {
            parameters.push(Parameter::Revision(expected));
        }
        let statement = match (kind, condition) {
            (DocumentKind::Credential, Condition::Absent) => Sql::CreateCredential,
            (DocumentKind::Credential, Condition::Unchanged(_)) => Sql::SetCredentialIf,
            (DocumentKind::Config, Condition::Absent) => Sql::CreateConfig,
            (DocumentKind::Config, Condition::Unchanged(_)) => Sql::SetConfigIf,
        };
        let written = self.run_keyed(Effect::Write, statement, key, &parameters).await?;
        if written.count > 0 { Ok(Revision::of(&text)) } else { Err(Condition::conflict(key)) }
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let (missing, statement) = match kind {
            DocumentKind::Credential => (Kind::Credential, Sql::DeleteCredentialIf),
            DocumentKind::Config => (Kind::Config, Sql::DeleteConfigIf),
        };
        let parameters = [Parameter::Text(key.as_str()), Parameter::Revision(revision)];
        let reply = self.run_keyed(Effect::Write, statement, key, &parameters).await?;
        let row = reply.rows.first().ok_or_else(|| Error::not_found(missing, key))?;
        if column(row, 0)? { Ok(()) } else { Err(Condition::conflict(key)) }
    }
    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.server.feed.next_change(kind, key)
    }
}
