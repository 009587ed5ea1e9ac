//! Conditional writes: a script compares and writes. The revision is the SHA-1 of the stored bytes.

use redis::{Cmd, cmd};
use sha1::{Digest, Sha1};

use super::{Redis, config, layout::Space, reply};
use crate::{
    Error, Key, Record, Result,
    backend::remote::Effect,
    capability::{Conditional, Wake, document_of},
    codec::decode_credential,
    error::Kind,
    history::DocumentKind,
    model::{Condition, Revision},
};

/// Sets a record if it has the expected revision (none: an empty text). Scripts are short, because Redis
/// takes longer to read and to run one than to write a record.
///
/// A refusal is an error reply, so that WAIT does not turn it into an unconfirmed write. The write is the
/// last command, because Redis keeps what a script wrote before an error.
macro_rules! set_if {
    ($get:literal, $set:literal) => {
        concat!(
            "local stored = redis.call(",
            $get,
            ") ",
            "if (stored and redis.sha1hex(stored) or '') ~= ARGV[1] then ",
            "return redis.error_reply('CONFLICT the record has changed') end ",
            "redis.call(",
            $set,
            ") return redis.status_reply('OK')"
        )
    };
}

/// Deletes a record if it has the expected revision.
macro_rules! delete_if {
    ($get:literal, $delete:literal) => {
        concat!(
            "local stored = redis.call(",
            $get,
            ") ",
            "if not stored then return redis.error_reply('NOTFOUND nothing is stored') end ",
            "if redis.sha1hex(stored) ~= ARGV[1] then ",
            "return redis.error_reply('CONFLICT the record has changed') end ",
            "redis.call(",
            $delete,
            ") return redis.status_reply('OK')"
        )
    };
}

// KEYS: a credential, or the hash of the config values. ARGV: the expected revision, the field of the hash
// (empty for a credential), and the new text.
const SET_CREDENTIAL: &str = set_if!("'GET', KEYS[1]", "'SET', KEYS[1], ARGV[3]");
const SET_CONFIG: &str = set_if!("'HGET', KEYS[1], ARGV[2]", "'HSET', KEYS[1], ARGV[2], ARGV[3]");
const DELETE_CREDENTIAL: &str = delete_if!("'GET', KEYS[1]", "'UNLINK', KEYS[1]");
const DELETE_CONFIG: &str = delete_if!("'HGET', KEYS[1], ARGV[2]", "'HDEL', KEYS[1], ARGV[2]");

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

    /// Sets the record to a text, or deletes it without one.
    async fn write_if(
        &self,
        kind: DocumentKind,
        key: &Key,
        condition: Condition,
        text: Option<&[u8]>,
    ) -> Result<()> {
        let expected = match condition {
            Condition::Absent => String::new(),
            Condition::Unchanged(revision) => revision.to_string(),
        };
        let script = match (kind, text) {
            (DocumentKind::Credential, Some(_)) => SET_CREDENTIAL,
            (DocumentKind::Credential, None) => DELETE_CREDENTIAL,
            (DocumentKind::Config, Some(_)) => SET_CONFIG,
            (DocumentKind::Config, None) => DELETE_CONFIG,
        };
        let (name, field) = self.location(kind, key);
        let mut eval = cmd("EVAL");
        eval.arg(script).arg(1).arg(name).arg(expected).arg(field.unwrap_or_default()).arg(text);
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
        self.write_if(kind, key, condition, Some(&text)).await.map(|()| revision_of(&text))
    }

    async fn delete_if(&self, kind: DocumentKind, key: &Key, revision: Revision) -> Result<()> {
        self.write_if(kind, key, Condition::Unchanged(revision), None).await
    }

    fn next_change(&self, kind: DocumentKind, key: &Key) -> Option<Wake> {
        self.feed.next_change(kind, key)
    }
}
