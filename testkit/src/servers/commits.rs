//! A proxy that loses commits, or the replies to them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    time::Duration,
};

/// The protocol, in which the proxy finds the commits.
#[derive(Clone, Copy)]
pub enum Protocol {
    /// BSON messages.
    MongoDb,
    /// PostgreSQL 3.0.
    Postgres,
}

/// The numbers of lost messages.
#[derive(Default)]
pub struct Lost {
    /// The commits whose reply was lost.
    pub replies: AtomicUsize,
    /// The commits that were lost before the server read them.
    pub requests: AtomicUsize,
}

/// The proxy.
pub struct Proxy {
    /// Its own port.
    pub port: u16,
    /// What it has lost.
    pub lost: Arc<Lost>,
}

impl Proxy {
    /// Starts it before the server at this port. The percentages of commits that lose their reply, and that
    /// are lost themselves.
    pub async fn start(protocol: Protocol, server: u16, replies: u8, requests: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, lost) = (listener.local_addr().unwrap().port(), Arc::<Lost>::default());
        let counts = lost.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(protocol, client, server, (replies, requests), counts.clone()));
            }
        });
        Self { port, lost }
    }
}

async fn relay(
    protocol: Protocol,
    client: TcpStream,
    server: u16,
    (replies, requests): (u8, u8),
    lost: Arc<Lost>,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut first, mut bytes) = (true, vec![0; 1 << 16]);
    let answers = tokio::spawn(async move {
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if to_client.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    });
    while let Some(message) = protocol.message(&mut from_client, first).await {
        let is_commit = !first && protocol.is_commit(&message);
        first = false;
        let dice = fastrand::u8(..100);
        if is_commit && dice < requests {
            lost.requests.fetch_add(1, Ordering::Relaxed);
            break;
        }
        if is_commit && dice < requests + replies {
            lost.replies.fetch_add(1, Ordering::Relaxed);
            answers.abort();
            drop(to_server.write_all(&message).await);
            // Sometimes the connection closes before the server has committed.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..10))).await;
            break;
        }
        if to_server.write_all(&message).await.is_err() {
            break;
        }
    }
    answers.abort();
}

impl Protocol {
    fn is_commit(self, message: &[u8]) -> bool {
        let holds = |wanted: &[u8]| message.windows(wanted.len()).any(|word| word == wanted);
        match self {
            Self::MongoDb => holds(b"commitTransaction"),
            Self::Postgres => message[0] == b'Q' && holds(b"COMMIT"),
        }
    }

    /// One message. PostgreSQL's first has no type.
    async fn message(self, from: &mut OwnedReadHalf, first: bool) -> Option<Vec<u8>> {
        let head = match self {
            Self::Postgres if !first => 5,
            Self::MongoDb | Self::Postgres => 4,
        };
        let mut message = vec![0; head];
        from.read_exact(&mut message).await.ok()?;
        let length = message[head - 4..].try_into().unwrap();
        let length = match self {
            Self::MongoDb => u32::from_le_bytes(length) as usize,
            Self::Postgres => head - 4 + u32::from_be_bytes(length) as usize,
        };
        message.resize(length, 0);
        from.read_exact(&mut message[head..]).await.ok()?;
        Some(message)
    }
}
