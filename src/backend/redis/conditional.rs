//! Conditional writes: a script compares and writes. The revision is the SHA-1 of the stored bytes.

use redis::{Cmd, cmd};
use sha1::{Digest, Sha1};

use super::{Redis, config, layout::Space, reply};
use crate::{
    Error, Key, Record, Result,
    backend::remote::Effect,
    capability::{Conditional, document_of},
    codec::decode_credential,
    error::Kind,
    history::DocumentKind,
    model::{Condition, Revision},
};

/// Sets or deletes a record if it has the expected revision.
///
/// KEYS: a credential, or the hash of the config values. ARGV: the expected revision (empty: no record), the
/// new text (empty: delete the record), and the field of the hash.
///
/// A refusal is an error reply, so that WAIT does not turn it into an unconfirmed write. The write is the
/// last command, because Redis keeps what a script wrote before an error.
const WRITE_IF: &str = "local expected, text, field = ARGV[1], ARGV[2], ARGV[3] \
    local record = {KEYS[1], field} \
    local stored = redis.call(field and 'HGET' or 'GET', unpack(record)) \
    if text == '' and not stored then return redis.error_reply('NOTFOUND nothing is stored') end \
    if (stored and redis.sha1hex(stored) or '') ~= expected then \
        return redis.error_reply('CONFLICT the record has changed') \
    end \
    if text == '' then \
        redis.call(field and 'HDEL' or 'UNLINK', unpack(record)) \
    else \
        table.insert(record, text) \
        redis.call(field and 'HSET' or 'SET', unpack(record)) \
    end \
    return redis.status_reply('OK')";

fn revision_of(text: &[u8]) -> Revision {
    Revision::new(Sha1::digest(text).into())
}

fn missing(kind: DocumentKind, key: &Key) -> Error {
    let kind = match kind {
        DocumentKind::Credential => Kind::Credential,
        DocumentKind::Config => Kind::Config,
    };
    Error::not_found(kind, key)
}

impl Redis {
    /// The Redis key of a record and, if that is a hash, the field.
    fn location<'k>(&self, kind: DocumentKind, key: &'k Key) -> (String, Option<&'k str>) {
        match kind {
            DocumentKind::Credential => (self.layout.name(Space::Credential, key), None),
            DocumentKind::Config => (self.layout.config(), Some(key.as_str())),
        }
    }

    fn query(&self, kind: DocumentKind, key: &Key) -> Cmd {
        let (name, field) = self.location(kind, key);
        cmd(if field.is_some() { "HGET" } else { "GET" }).arg(name).arg(field).take()
    }

    /// Runs [`WRITE_IF`]. Without a text it deletes the record.
    async fn write_if(&self, kind: DocumentKind, key: &Key, condition: Condition, text: &[u8]) -> Result<()> {
        let expected = match condition {
            Condition::Absent => String::new(),
            Condition::Unchanged(revision) => revision.to_string(),
        };
        let (name, field) = self.location(kind, key);
        let mut eval = cmd("EVAL");
        eval.arg(WRITE_IF).arg(1).arg(name).arg(expected).arg(text).arg(field);
        let replied = self.call()?.send(Effect::Write, &eval).await;
        replied.and_then(reply::done).map_err(|error| match error.code() {
            Some("CONFLICT") => Condition::conflict(key),
            Some("NOTFOUND") => missing(kind, key),
            _ => error.with_key(key),
        })
    }
}

impl Conditional for Redis {
    async fn get_with_revision(&self, kind: DocumentKind, key: &Key) -> Result<(Record, Revision)> {
        let replied = self.call()?.send(Effect::Read, &self.query(kind, key)).await;
        let text = replied.and_then(reply::bytes).map_err(|error| error.with_key(key))?;
        let text = text.ok_or_else(|| missing(kind, key))?;
        let record = match kind {
            DocumentKind::Credential => {
                let credential = decode_credential(&text).map_err(|error| error.with_key(key))?;
                Record::Credential { id: key.clone(), credential }
            }
            DocumentKind::Config => Record::Config { key: key.clone(), value: config::read(key, &text)? },
        };
        Ok((record, revision_of(&text)))
    }

    async fn set_if(&self, record: &Record, condition: Condition) -> Result<Revision> {
        let (kind, key, text) = document_of(record)?;
        self.write_if(kind, key, condition, &text).await.map(|()| revision_of(&text))
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        self.write_if(kind, key, Condition::Unchanged(revision), b"").await
    }
}
