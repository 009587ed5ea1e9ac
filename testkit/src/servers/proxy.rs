//! A relay between a store and its server that can cut connections, fall silent, be slow to connect and slow
//! to forward, and that can count requests.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::Instant,
};

use super::wire::{Protocol, Tap, Traffic};

/// The relay.
#[derive(Clone)]
pub struct Proxy {
    /// Its own address.
    pub addr: String,
    server: Arc<Mutex<String>>,
    connections: Arc<Mutex<Vec<Connection>>>,
    silence: Arc<Notify>,
    delay: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
    counted: Option<Protocol>,
    traffic: Arc<Mutex<Traffic>>,
}

/// A handle that ends it, and its latency in milliseconds.
type Connection = (AbortHandle, Arc<AtomicU64>);

/// Forwards bytes, each part after the latency. `see` is called with each part before it is forwarded.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    latency: &AtomicU64,
    see: impl Fn(&[u8]),
) {
    let (came, mut due) = mpsc::unbounded_channel();
    let take = async move {
        let mut part = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut part).await {
            see(&part[..length]);
            let at = Instant::now() + Duration::from_millis(latency.load(Ordering::SeqCst));
            if came.send((at, part[..length].to_vec())).is_err() {
                break;
            }
        }
    };
    let give = async move {
        while let Some((at, part)) = due.recv().await {
            if at > Instant::now() {
                tokio::time::sleep_until(at).await;
            }
            if to.write_all(&part).await.is_err() {
                break;
            }
        }
        drop(to.shutdown().await);
    };
    tokio::join!(take, give);
}

impl Proxy {
    /// Starts it before the server at this address.
    pub async fn start(server: String) -> Self {
        Self::begin(server, None).await
    }

    /// The same, and counts what clients send.
    pub async fn counting(server: String, protocol: Protocol) -> Self {
        Self::begin(server, Some(protocol)).await
    }

    async fn begin(server: String, counted: Option<Protocol>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            addr: listener.local_addr().unwrap().to_string(),
            server: Arc::new(Mutex::new(server)),
            connections: Arc::default(),
            silence: Arc::default(),
            delay: Arc::default(),
            accepted: Arc::default(),
            counted,
            traffic: Arc::default(),
        };
        let relay = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                relay.accepted.fetch_add(1, Ordering::SeqCst);
                let latency = Arc::new(AtomicU64::new(0));
                let connection = tokio::spawn(relay.clone().relay(client, latency.clone()));
                relay.connections.lock().unwrap().push((connection.abort_handle(), latency));
            }
        });
        proxy
    }

    async fn relay(self, client: TcpStream, latency: Arc<AtomicU64>) {
        tokio::time::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst))).await;
        let server = self.server.lock().unwrap().clone();
        let Ok(server) = TcpStream::connect(server).await else { return };
        let ((client_reads, client_writes), (server_reads, server_writes)) =
            (client.into_split(), server.into_split());
        let tap = Mutex::new(self.counted.map(Tap::new));
        let sent = |part: &[u8]| {
            if let Some(tap) = &mut *tap.lock().unwrap() {
                tap.sent(part, &mut self.traffic.lock().unwrap());
            }
        };
        let replied = |_: &[u8]| {
            if let Some(tap) = &mut *tap.lock().unwrap() {
                tap.replied();
            }
        };
        let mut both = std::pin::pin!(async {
            tokio::join!(
                carry(client_reads, server_writes, &latency, sent),
                carry(server_reads, client_writes, &latency, replied)
            )
        });
        tokio::select! {
            _ = &mut both => {}
            // Both ends stay open.
            () = self.silence.notified() => std::future::pending().await,
        }
    }

    /// Cuts the oldest connection, also in the middle of a message. Returns how many were cut.
    pub fn cut_one(&self) -> usize {
        let mut connections = self.connections.lock().unwrap();
        connections.retain(|(relay, _)| !relay.is_finished());
        if connections.is_empty() {
            return 0;
        }
        connections.remove(0).0.abort();
        1
    }

    /// The number of accepted connections.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// What the clients of all connections have sent, if the proxy counts.
    pub fn traffic(&self) -> Traffic {
        *self.traffic.lock().unwrap()
    }

    /// Connects new clients to another server.
    pub fn lead_to(&self, server: String) {
        *self.server.lock().unwrap() = server;
    }

    /// Forwards nothing any more on the current connections.
    pub fn fall_silent(&self) {
        self.silence.notify_waiters();
    }

    /// Sets the latency of each direction on the current connections.
    pub fn delay_replies(&self, delay: Duration) {
        for (_, latency) in &*self.connections.lock().unwrap() {
            latency.store(delay.as_millis() as u64, Ordering::SeqCst);
        }
    }

    /// Sets how long a new connection waits before it forwards anything.
    pub fn delay_connections(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Ordering::SeqCst);
    }
}
