//! Watches: one change stream for each of the two collections, in one task of a store.

mod client;
mod place;
mod stream;
pub(super) mod watching;

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use client::{View, WatchClient};
use futures_core::Stream;
use futures_util::{
    StreamExt,
    future::try_join,
    stream::{select, try_unfold},
};
use mongodb::change_stream::event::ResumeToken;
use place::{Tokens, cursor, is_at_least, later, tokens};
use stream::{Begin, Changed, Cut, KINDS, no_time, now, refusal, session, unsupported};
use tokio::time::{Instant, sleep, timeout};
use watching::Past;

use super::{
    LABEL, MongoDb, MongoDbOptions,
    error::{SERVER, unexpected_reply},
    pool::{Permit, Pool},
    server::Server,
};
use crate::{
    Error, ErrorKind, Result,
    backend::{
        feed::{Change, IDLE_EVERY, Source, Teller},
        remote::{Effect, reply_timeout},
    },
    capability::Watch,
    event::{Cursor, Event, WatchOptions},
};

/// How long the server waits for a change before it answers that there is none: two streams send one query
/// in two seconds.
const AWAIT: Duration = Duration::from_secs(4);

/// How long an answer may take. Then the server can't be reached any more.
const SILENCE: Duration = Duration::from_secs(15);

/// How long the server may look for the place at which the streams go on. Then beginning anew costs less.
const SEARCH: Duration = Duration::from_secs(30);

/// The pause after changes, during which further ones come together: each answer is a query.
const PAUSE: Duration = Duration::from_millis(5);

/// The most changes that are told at once.
const CHUNK: usize = 1000;

/// How long, and how many changes, a watch may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(15);
const MOST: usize = 100_000;

/// How long the last answer of a catch-up waits for a change. No answer is sooner if there are none.
const LAST_AWAIT: Duration = Duration::from_millis(20);

impl Watch for MongoDb {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        self.server.watching.feed.watch(Changes(Arc::downgrade(&self.server)), options)
    }
}

/// The changes of a store.
#[derive(Clone)]
struct Changes(Weak<Server>);

impl Source for Changes {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        let server = self.0.upgrade().ok_or_else(Error::closed)?;
        let (options, watching) = (server.options.clone(), server.watching.clone());
        drop(server);
        let client = Box::pin(WatchClient::new(&options, watching.turn().await)).await?;
        // If this is aborted, the next watch begins anew: none waits for the changes until then.
        let mut past = watching.take();
        let Err(cut) = Box::pin(follow(&client, &options, teller, &mut past)).await;
        let error = match cut {
            Cut::Passing(_) if client.has_new_password(&options).await => {
                Error::new(ErrorKind::Unavailable, "the MongoDB server has a new password for the user")
            }
            Cut::Passing(error) => refusal(&error),
            Cut::Failed(error) => error,
            Cut::Lost(error) => {
                past = Past::default();
                error
            }
        };
        watching.keep(past);
        Err(error)
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        let server = self.0.upgrade().ok_or_else(Error::closed)?;
        if let Some(changes) = server.watching.feed.since(cursor) {
            return Ok(Some(changes));
        }
        // The deadline of a handle does not hold for a watch.
        let mongodb = MongoDb { server, deadline: 2 * CATCH_UP };
        let call = mongodb.call()?;
        let options = &mongodb.server.options;
        let caught_up = |permit: Permit| async move {
            let View { store, .. } = View::of(&permit, options).await?;
            let Some(tokens) = tokens(store, cursor) else { return Ok(None) };
            match timeout(CATCH_UP, Box::pin(catch_up(&permit, tokens))).await {
                Ok(Err(Cut::Passing(error))) => Err(error),
                Ok(Ok(changes)) => Ok(changes),
                // Then it is not worth more time: the watcher reads all again.
                Ok(Err(Cut::Failed(_) | Cut::Lost(_))) | Err(_) => Ok(None),
            }
        };
        // The driver's futures are large.
        Box::pin(call.read(caught_up)).await
    }
}

/// Tells what changes until it can't go on.
async fn follow(
    client: &WatchClient,
    options: &MongoDbOptions,
    teller: &Teller,
    past: &mut Past,
) -> Result<Infallible, Cut> {
    let view = answered(View::of(&client.pool, options)).await?.map_err(Cut::Passing)?;
    let View { store, election, .. } = view;
    if !view.has_streams {
        return Err(Cut::Failed(unsupported()));
    }
    let last = past.place(teller.last(), election).and_then(|cursor| tokens(store, &cursor));
    let resumed = match last {
        Some(tokens) => Box::pin(resume(client, tokens)).await?,
        None => None,
    };
    let is_resumed = resumed.is_some();
    let opened = match resumed {
        Some(opened) => opened,
        None => Box::pin(begin(client)).await?,
    };
    let mut tokens = opened.each_ref().map(Changed::token);
    let place =
        |[first, second]: &[Option<ResumeToken>; 2]| cursor(store, [first.as_ref()?, second.as_ref()?]);
    if is_resumed {
        teller.resumed();
    } else {
        let cursor = place(&tokens);
        *past = Past::default();
        past.mark(cursor.clone(), election);
        teller.started(cursor);
    }
    let mut opened_until_now = client.opened();
    let [credentials, configs] = opened;
    let mut answers = pin!(select(answers(0, credentials), answers(1, configs)).ready_chunks(CHUNK));
    let (mut last_idle, mut have_answered) = (Instant::now(), [false; 2]);
    while let Some(chunk) = answers.next().await {
        let (mut changes, is_all) = (Vec::new(), chunk.len() < CHUNK);
        for answer in chunk {
            // If this one is an error, those before are told when the streams go on.
            let Answer { of, change, token } = answer?;
            changes.extend(change);
            (tokens[of], have_answered[of]) = (token, true);
        }
        let (cursor, waits) = (place(&tokens), is_all && !changes.is_empty());
        teller.tell(changes, cursor.clone());
        if have_answered == [true; 2] && last_idle.elapsed() >= IDLE_EVERY {
            (last_idle, have_answered) = (Instant::now(), [false; 2]);
            let opened = client.opened();
            if opened != opened_until_now {
                // The driver has opened a stream again by itself.
                let now = answered(View::of(&client.pool, options)).await?.map_err(Cut::Passing)?.election;
                if now.is_none() || now != election {
                    return Err(Cut::Failed(another_primary()));
                }
                opened_until_now = opened;
            }
            past.mark(cursor.clone(), election);
            teller.idle(cursor);
        }
        if waits {
            sleep(PAUSE).await;
        }
    }
    Err(Cut::Failed(unexpected_reply(Effect::Read)))
}

/// See [`Past::place`].
#[cold]
fn another_primary() -> Error {
    Error::new(ErrorKind::Unavailable, "another MongoDB server may be the primary now")
}

/// Opens the streams anew.
async fn begin(client: &WatchClient) -> Result<[Changed; 2], Cut> {
    let begin = async |kind| {
        let time = now(&client.pool, kind).await.map_err(Cut::Passing)?.ok_or_else(no_time)?;
        let session = client.session().await.map_err(Cut::Passing)?;
        // The change at this time can be read already.
        let after = Begin::At(later(time, 1));
        Changed::open(&client.pool, session, kind, after, AWAIT).await.map_err(Cut::Passing)
    };
    let (credentials, configs) = answered(try_join(begin(KINDS[0]), begin(KINDS[1]))).await??;
    Ok([credentials, configs])
}

/// Opens the streams after these tokens. `None`: the server can't, or can't in time.
async fn resume(client: &WatchClient, [first, second]: Tokens) -> Result<Option<[Changed; 2]>, Cut> {
    let after = async |kind, token| {
        let session = client.session().await.map_err(Cut::Passing)?;
        Changed::open_after(&client.pool, session, kind, token, AWAIT).await
    };
    match timeout(SEARCH, try_join(after(KINDS[0], first), after(KINDS[1], second))).await {
        Ok(Ok(((credentials, _), (configs, _)))) => Ok(Some([credentials, configs])),
        Ok(Err(Cut::Lost(_))) | Err(_) => Ok(None),
        Ok(Err(cut)) => Err(cut),
    }
}

/// One answer of a stream.
struct Answer {
    /// Which of [`KINDS`] it is about.
    of: usize,
    /// `None`: there was no change until now.
    change: Option<Change>,
    /// Where to go on after it.
    token: Option<ResumeToken>,
}

fn answers(of: usize, stream: Changed) -> impl Stream<Item = Result<Answer, Cut>> {
    try_unfold(stream, move |mut stream| async move {
        let change = answered(stream.next()).await??;
        Ok(Some((Answer { of, change, token: stream.token() }, stream)))
    })
}

/// Waits for an answer of the server, but not without end.
async fn answered<T>(answer: impl Future<Output = T>) -> Result<T, Cut> {
    timeout(SILENCE, answer).await.map_err(|_| Cut::Failed(reply_timeout(SERVER, Effect::Read)))
}

/// Reads the changes after these tokens until now. `None`: there are too many.
async fn catch_up(pool: &Pool, [first, second]: Tokens) -> Result<Option<Vec<Change>>, Cut> {
    let of = |kind, token| async move {
        let session = session(pool).await?;
        let (mut stream, now) = Changed::open_after(pool, session, kind, token, LAST_AWAIT).await?;
        let mut changes = Vec::new();
        while changes.len() <= MOST {
            let change = stream.next().await?;
            let token = stream.token();
            let is_at_least = |time| token.as_ref().and_then(|token| is_at_least(token, time));
            match change {
                Some(change) => changes.push(change),
                // Behind a router an answer without a change does not mean that there is none.
                None if is_at_least(now) != Some(false) => break,
                None => {}
            }
            // Several changes can have one time.
            if is_at_least(later(now, 1)) == Some(true) {
                break;
            }
        }
        Ok::<_, Cut>(changes)
    };
    let (mut changes, configs) = try_join(of(KINDS[0], first), of(KINDS[1], second)).await?;
    changes.extend(configs);
    Ok(Some(changes).filter(|changes| changes.len() <= MOST))
}
