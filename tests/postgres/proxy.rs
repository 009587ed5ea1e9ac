//! A proxy that loses the replies to commits, or the commits.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    time::Duration,
};

/// How many of each kind were lost.
#[derive(Default)]
pub(crate) struct Lost {
    pub(crate) replies: AtomicUsize,
    pub(crate) requests: AtomicUsize,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) lost: Arc<Lost>,
}

impl Proxy {
    /// Before the server at this port. In percent: how many commits lose their reply, and how many are lost themselves.
    pub(crate) async fn start(server: u16, replies: u8, requests: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, lost) = (listener.local_addr().unwrap().port(), Arc::<Lost>::default());
        let counts = lost.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server, replies, requests, counts.clone()));
            }
        });
        Self { port, lost }
    }
}

async fn relay(client: TcpStream, server: u16, replies: u8, requests: u8, lost: Arc<Lost>) {
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
    while let Some(message) = message(&mut from_client, first).await {
        let is_commit = !first && message[0] == b'Q' && message.windows(6).any(|word| word == b"COMMIT");
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
            // Some of the time the connection is gone before the server is done.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..10))).await;
            break;
        }
        if to_server.write_all(&message).await.is_err() {
            break;
        }
    }
    answers.abort();
}

/// One message of the protocol. The first has no type.
async fn message(from: &mut OwnedReadHalf, first: bool) -> Option<Vec<u8>> {
    let mut message = vec![0; if first { 4 } else { 5 }];
    from.read_exact(&mut message).await.ok()?;
    let head = message.len();
    let length = u32::from_be_bytes(message[head - 4..].try_into().unwrap()) as usize;
    message.resize(head + length - 4, 0);
    from.read_exact(&mut message[head..]).await.ok()?;
    Some(message)
}
