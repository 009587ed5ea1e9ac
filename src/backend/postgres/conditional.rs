//! Conditional writes: the revision is the digest of a row's text, which the server computes again to compare.

use super::{
    Postgres, config, credential,
    statement::{Json, Parameter, Sql, column},
};
use crate::{
    Error, Key, Record, Result,
    backend::remote::Effect,
    capability::document_of,
    error::Kind,
    history::DocumentKind,
    revision::{Condition, Conditional, Revision},
};

impl Conditional for Postgres {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let (of, statement) = match kind {
            DocumentKind::Credential => (Kind::Credential, Sql::GetCredential),
            DocumentKind::Config => (Kind::Config, Sql::GetConfig),
        };
        let reply = self.call()?.run(Effect::Read, statement, &[Parameter::Text(key.as_str())]).await?;
        let row = reply.rows.first().ok_or_else(|| Error::not_found(of, key))?;
        let Json(text) = column(row, 0)?;
        let revision = Revision::of(text);
        let record = match kind {
            DocumentKind::Credential => {
                Record::Credential { id: key.clone(), credential: credential::read(key, row, 0)? }
            }
            DocumentKind::Config => Record::Config { key: key.clone(), value: config::read(key, row, 0)? },
        };
        Ok((record, revision))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, text) = document_of(record)?;
        let new = Revision::of(&text);
        let (name, text, revision) =
            (Parameter::Text(key.as_str()), Parameter::Json(&text), Parameter::Revision(new));
        let (statement, parameters) = match (condition, kind) {
            (Condition::Absent, DocumentKind::Credential) => {
                (Sql::CreateCredential, vec![name, text, revision])
            }
            (Condition::Absent, DocumentKind::Config) => (Sql::CreateConfig, vec![name, text, revision]),
            (Condition::Unchanged(expected), kind) => {
                let statement = match kind {
                    DocumentKind::Credential => Sql::SetCredentialIf,
                    DocumentKind::Config => Sql::SetConfigIf,
                };
                (statement, vec![name, text, Parameter::Revision(expected), revision])
            }
        };
        let written = self.call()?.run(Effect::Write, statement, &parameters).await?;
        if written.count > 0 { Ok(new) } else { Err(Condition::conflict(key)) }
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        let (kind, statement) = match kind {
            DocumentKind::Credential => (Kind::Credential, Sql::DeleteCredentialIf),
            DocumentKind::Config => (Kind::Config, Sql::DeleteConfigIf),
        };
        let expected = [Parameter::Text(key.as_str()), Parameter::Revision(revision)];
        let reply = self.call()?.run(Effect::Write, statement, &expected).await?;
        let row = reply.rows.first().ok_or_else(|| Error::not_found(kind, key))?;
        if column(row, 0)? { Ok(()) } else { Err(Condition::conflict(key)) }
    }
}
