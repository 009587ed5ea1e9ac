//! The driver's client of a watch: its streams wait for seconds, so they must not take the connections of
//! calls.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mongodb::{
    ClientSession,
    bson::{Bson, Document, doc, oid::ObjectId},
    error::Result as DriverResult,
    event::{EventHandler, command::CommandEvent},
};
use sha2::{Digest, Sha256};
use tokio::{runtime::Handle, sync::OwnedMutexGuard, time::timeout};

use super::{
    super::{MongoDbOptions, error, pool::Pool},
    stream::session,
};
use crate::Result;

/// A connection for each stream.
const CONNECTIONS: u32 = 2;

/// How long closing the streams at the server may take. The server closes them by itself after ten minutes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The client. Dropping it closes its streams, which must have been dropped, and its connections.
pub(super) struct WatchClient {
    pub(super) pool: Arc<Pool>,
    opened: Arc<AtomicUsize>,
    sessions: Mutex<Vec<Document>>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl WatchClient {
    /// Connects when it is first used. The turn ends when all is closed.
    pub(super) async fn new(options: &MongoDbOptions, turn: OwnedMutexGuard<()>) -> Result<Self> {
        let opened = Arc::new(AtomicUsize::new(0));
        let counter = opened.clone();
        let commands = EventHandler::callback(move |event| {
            if let CommandEvent::Started(command) = event
                && command.command_name == "aggregate"
            {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        let password = options.password_now().await?;
        let pool = Pool::observed(options, CONNECTIONS, password, Some(commands)).await?;
        Ok(Self { pool: Arc::new(pool), opened, sessions: Mutex::default(), turn: Some(turn) })
    }

    /// A session for a stream.
    pub(super) async fn session(&self) -> DriverResult<ClientSession> {
        let session = session(&self.pool).await?;
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session.id().clone());
        Ok(session)
    }

    /// How many streams were opened. The driver opens a stream again by itself if it is cut.
    pub(super) fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Whether a server refused the login, but there is another password now.
    pub(super) async fn has_new_password(&self, options: &MongoDbOptions) -> bool {
        let is_other = |password| password != self.pool.password;
        self.pool.topology.is_refused() && options.password_now().await.is_ok_and(is_other)
    }
}

impl Drop for WatchClient {
    fn drop(&mut self) {
        // Without a runtime nothing can be sent.
        let Ok(runtime) = Handle::try_current() else { return };
        let (pool, turn) = (self.pool.clone(), self.turn.take());
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        runtime.spawn(async move {
            let close = async {
                // The driver closes cursors that it knows, but not one that the server is just opening, and
                // it does not end a query that waits.
                if !sessions.is_empty() {
                    drop(pool.database.run_command(doc! { "killSessions": sessions }).await);
                }
                pool.client.clone().shutdown().await;
            };
            let is_closed = timeout(CLOSE_TIMEOUT, close).await.is_ok();
            // A server that does not answer must not hold up the next client.
            drop(turn);
            if !is_closed {
                pool.client.clone().shutdown().immediate(true).await;
            }
        });
    }
}

/// What the server says about the store.
pub(super) struct View {
    /// Distinguishes the store from others, also from one of the same name before.
    pub(super) store: u64,
    /// False on a standalone server.
    pub(super) has_streams: bool,
    /// The election of the primary. None behind a router.
    pub(super) election: Option<ObjectId>,
}

impl View {
    pub(super) async fn of(pool: &Pool, options: &MongoDbOptions) -> DriverResult<Self> {
        let hello = pool.database.run_command(doc! { "hello": 1 }).await?;
        let found = collections(pool).await?;
        let mut hash = Sha256::new();
        hash.update(&options.database);
        if found.is_empty() {
            hash.update(options.identity());
        }
        for (name, id) in found {
            hash.update(name);
            hash.update(id);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let (store, _) = hash.as_chunks();
        Ok(Self {
            store: u64::from_be_bytes(store[0]),
            has_streams: hello.contains_key("setName")
                || hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid"),
            election: hello.get_object_id("electionId").ok(),
        })
    }
}

/// The numbers that the server gave our collections when they were created. None if the user may not list
/// them, or if the server has none.
async fn collections(pool: &Pool) -> DriverResult<BTreeMap<String, Vec<u8>>> {
    let names = [pool.credentials.name(), pool.configs.name()];
    let list = doc! { "listCollections": 1, "filter": { "name": { "$in": &names[..] } } };
    let reply = match pool.database.run_command(list).await {
        Err(error) if error::code_of(&error) == Some(13) => return Ok(BTreeMap::new()),
        reply => reply?,
    };
    let found = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let id = |found: &Document| match found.get_document("info").ok()?.get("uuid")? {
        Bson::Binary(id) => Some((found.get_str("name").ok()?.to_owned(), id.bytes.clone())),
        _ => None,
    };
    Ok(found.into_iter().flatten().filter_map(Bson::as_document).filter_map(id).collect())
}
