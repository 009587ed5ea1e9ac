//! The change stream of one collection.

use std::time::Duration;

use mongodb::{
    ClientSession,
    bson::{RawDocument, RawDocumentBuf, Timestamp, doc},
    change_stream::{event::ResumeToken, session::SessionChangeStream},
    error::{Error as DriverError, Result as DriverResult},
    options::ReadConcern,
};

use super::{
    super::{conditional, document, error, pool::Pool},
    place::{is_at_least, later},
};
use crate::{Error, ErrorKind, backend::feed::Change, backend::remote::Effect, history::DocumentKind};

/// The kinds that are watched, in the order of their tokens in a cursor.
pub(super) const KINDS: [DocumentKind; 2] = [DocumentKind::Credential, DocumentKind::Config];

/// Where a stream begins.
pub(super) enum Begin {
    After(ResumeToken),
    At(Timestamp),
}

/// Why a stream ended.
pub(super) enum Cut {
    /// The changes after its token can still be told.
    Passing(DriverError),
    /// The same, with an error of our own.
    Failed(Error),
    /// They can't.
    Lost(Error),
}

impl From<DriverError> for Cut {
    fn from(error: DriverError) -> Self {
        use ErrorKind::{Busy, Conflict, Denied, Timeout, Unavailable};
        let kind = error::of_request(&error, Effect::Read).kind();
        let keeps = error.contains_label("ResumableChangeStreamError")
            || error::code_of(&error).is_some_and(is_of_cursor)
            || matches!(kind, Busy | Conflict | Timeout | Unavailable)
            // It is not the token's fault.
            || kind == Denied;
        if keeps { Self::Passing(error) } else { Self::Lost(lost(error::code_of(&error))) }
    }
}

/// `CursorNotFound`, `RetryChangeStream`, `CursorKilled`
const fn is_of_cursor(code: i32) -> bool {
    matches!(code, 43 | 234 | 237)
}

#[cold]
pub(super) fn lost(code: Option<i32>) -> Error {
    let message = "the MongoDB server can't tell what has changed since the last change";
    let error = Error::new(ErrorKind::Unavailable, message);
    match code {
        Some(code) => error.with_code(code.to_string()),
        None => error,
    }
}

/// The error of a watch that can't go on.
#[cold]
pub(super) fn refusal(error: &DriverError) -> Error {
    let failure = error::of_request(error, Effect::Read);
    match error::code_of(error) {
        // Not on a replica set; no such stage; no such command.
        Some(code @ (40573 | 40324 | 59 | 115 | 303)) => unsupported().with_code(code.to_string()),
        Some(13) => {
            let message = "the MongoDB user lacks the right to watch: it needs `find` and `changeStream` on the collections \
                           `credentials` and `configs`, which the role `readWrite` has";
            failure.with_message(message.to_owned())
        }
        Some(code) if is_of_cursor(code) => {
            let message = "the MongoDB server closed the change stream";
            Error::new(ErrorKind::Unavailable, message).with_code(code.to_string())
        }
        _ => failure,
    }
}

#[cold]
pub(super) fn unsupported() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "a watch needs change streams, which a standalone MongoDB server does not have: make it a replica set of one member",
    )
}

/// A server with logins that has just started tells no time until it has the keys to sign it.
#[cold]
pub(super) fn no_time() -> Cut {
    let message = "the MongoDB server does not tell the time of its last write yet";
    Cut::Failed(Error::new(ErrorKind::Unavailable, message))
}

/// The time of the last write that the majority has.
///
/// A stream without a time would begin after the last write of the primary. The majority may get that write
/// later, so a reader would not find it and the stream would not tell of it.
pub(super) async fn now(pool: &Pool, kind: DocumentKind) -> DriverResult<Option<Timestamp>> {
    let find = doc! {
        "find": conditional::of(kind).1(pool).name(), "projection": { "_id": 1 }, "limit": 1, "singleBatch": true,
        "readConcern": { "level": "majority" },
    };
    let reply = pool.database.run_command(find).await?;
    Ok(reply.get_timestamp("operationTime").ok())
}

/// A session of its own for a stream, by which the server can end it at any time.
pub(super) async fn session(pool: &Pool) -> DriverResult<ClientSession> {
    pool.client.start_session().causal_consistency(false).await
}

/// An open stream.
pub(super) struct Changed {
    stream: SessionChangeStream<RawDocumentBuf>,
    session: ClientSession,
    kind: DocumentKind,
}

impl Changed {
    /// Opens it at the server.
    ///
    /// Values do not travel, and nothing is read for the events: they have the token, the operation and the
    /// key.
    pub(super) async fn open(
        pool: &Pool,
        mut session: ClientSession,
        kind: DocumentKind,
        begin: Begin,
        longest: Duration,
    ) -> DriverResult<Self> {
        let fields = doc! { "$project": { "operationType": 1, "documentKey._id": 1 } };
        let watch = conditional::of(kind).1(pool).watch().pipeline([fields]).max_await_time(longest);
        let watch = watch.read_concern(ReadConcern::majority());
        let watch = match begin {
            Begin::After(token) => watch.resume_after(token),
            Begin::At(time) => watch.start_at_operation_time(time),
        };
        let stream = watch.session(&mut session).await?.with_type();
        Ok(Self { stream, session, kind })
    }

    /// Opens it after this token, unless the server can't have made the token: it is of a later time.
    pub(super) async fn open_after(
        pool: &Pool,
        session: ClientSession,
        kind: DocumentKind,
        token: ResumeToken,
        longest: Duration,
    ) -> Result<(Self, Timestamp), Cut> {
        let now = now(pool, kind).await?.ok_or_else(no_time)?;
        // A stream that begins after the last write has a token of the next time.
        if is_at_least(&token, later(now, 2)) == Some(true) {
            return Err(Cut::Lost(lost(None)));
        }
        Ok((Self::open(pool, session, kind, Begin::After(token), longest).await?, now))
    }

    /// The next change. `None`: there is none until now.
    pub(super) async fn next(&mut self) -> Result<Option<Change>, Cut> {
        match self.stream.next_if_any(&mut self.session).await? {
            Some(event) => change(self.kind, &event).map(Some),
            None if self.stream.is_alive() => Ok(None),
            None => Err(Cut::Lost(lost(None))),
        }
    }

    /// Where to go on after the last change.
    pub(super) fn token(&self) -> Option<ResumeToken> {
        self.stream.resume_token()
    }
}

/// The change that an event tells of.
fn change(kind: DocumentKind, event: &RawDocument) -> Result<Change, Cut> {
    match event.get_str("operationType") {
        Ok("insert" | "update" | "replace" | "delete") => {
            let key = event.get_document("documentKey").ok().and_then(|key| document::key(key).ok());
            Ok((kind, key))
        }
        // The collection was dropped or renamed. The stream ends after that.
        _ => Err(Cut::Lost(lost(None))),
    }
}
