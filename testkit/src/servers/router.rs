//! A relay before a server that answers clients as a router to shards (mongos) does. No package registry has
//! mongos.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering},
    },
};

use mongodb::bson::{Bson, Document, doc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

const HEADER: usize = 16;
const OP_REPLY: i32 = 1;
const OP_MSG: i32 = 2013;

/// The relay.
#[derive(Clone)]
pub struct Router {
    /// Its own address.
    pub addr: String,
    /// The error code that replaces the shard's answer to an `update`; 0 replaces none.
    code: Arc<AtomicI32>,
}

impl Router {
    /// Starts it before the server at this address.
    pub async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let router = Self { addr, code: Arc::default() };
        let relay = router.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let updates = Updates::default();
                tokio::spawn(requests(from_client, to_server, updates.clone()));
                tokio::spawn(relay.clone().replies(from_server, to_client, updates));
            }
        });
        router
    }

    /// From now on an error with this code replaces the shard's answer to an `update`; 0 replaces none.
    pub fn lose_updates(&self, code: i32) {
        self.code.store(code, Ordering::SeqCst);
    }

    async fn replies(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, updates: Updates) {
        while let Some(message) = read(&mut from).await {
            let message = self.reply(message, &updates);
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }

    fn reply(&self, message: Vec<u8>, updates: &Updates) -> Vec<u8> {
        let Some((begin, mut reply)) = document(&message) else { return message };
        let (code, answers) = (self.code.load(Ordering::SeqCst), number(&message, 8));
        let is_update = updates.lock().unwrap().remove(&answers);
        if reply.contains_key("maxWireVersion") {
            // A server of a replica set becomes a router.
            for name in ["setName", "hosts", "primary", "me", "electionId", "setVersion", "topologyVersion"] {
                reply.remove(name);
            }
            reply.insert("msg", "isdbgrid");
        } else if is_update && code != 0 {
            // `noteBatchResponse` in the server's src/mongo/s/write_ops/batch_write_op.cpp ("Treat command
            // errors exactly like other failures of the batch") calls `noteBatchError`: n is 0, and there is
            // an error for each write that was sent to the shard, if the batch is not ordered, with the code
            // of the shard's command.
            let count = reply.get_i32("n").unwrap_or_default();
            let error = |at| Bson::Document(doc! { "index": at, "code": code, "errmsg": "of the shard" });
            reply.insert("n", 0);
            reply.insert("nModified", 0);
            reply.insert("writeErrors", (0..count).map(error).collect::<Vec<_>>());
        } else {
            return message;
        }
        let mut changed = message[..begin].to_vec();
        // Without a checksum, for which there is a flag.
        reply.to_writer(&mut changed).unwrap();
        let length = i32::try_from(changed.len()).unwrap().to_le_bytes();
        changed[..4].copy_from_slice(&length);
        changed
    }
}

/// The numbers of the updates of counters that were sent and have no reply yet.
type Updates = Arc<Mutex<BTreeSet<i32>>>;

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, updates: Updates) {
    while let Some(message) = read(&mut from).await {
        if document(&message)
            .is_some_and(|(_, request)| request.get_str("update").is_ok_and(|of| of == "usage"))
        {
            updates.lock().unwrap().insert(number(&message, 4));
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

async fn read(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut message = vec![0; HEADER];
    from.read_exact(&mut message).await.ok()?;
    message.resize(usize::try_from(number(&message, 0)).ok()?, 0);
    from.read_exact(&mut message[HEADER..]).await.ok()?;
    Some(message)
}

fn number(message: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(message[at..at + 4].try_into().unwrap())
}

/// The first document of a message, and where it begins.
fn document(message: &[u8]) -> Option<(usize, Document)> {
    let begin = match number(message, 12) {
        // After the flags and the kind of the section, or after what describes a cursor.
        OP_MSG => HEADER + 5,
        OP_REPLY => HEADER + 20,
        _ => return None,
    };
    Some((begin, Document::from_reader(message.get(begin..)?).ok()?))
}
