//! A relay between a store and its server that can cut connections, fall silent, and be slow to connect.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::AbortHandle,
};

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) addr: String,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    silence: Arc<Notify>,
    delay: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            addr: listener.local_addr().unwrap().to_string(),
            connections: Arc::default(),
            silence: Arc::default(),
            delay: Arc::default(),
        };
        let relay = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let connection = tokio::spawn(relay.clone().relay(client, server.clone()));
                relay.connections.lock().unwrap().push(connection.abort_handle());
            }
        });
        proxy
    }

    async fn relay(self, mut client: TcpStream, server: String) {
        tokio::time::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst))).await;
        let Ok(mut server) = TcpStream::connect(server).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => {}
            // Both ends stay open.
            () = self.silence.notified() => std::future::pending().await,
        }
    }

    /// Cuts the oldest connection, whatever is on its way. Says how many were cut.
    pub(crate) fn cut_one(&self) -> usize {
        let mut connections = self.connections.lock().unwrap();
        connections.retain(|relay| !relay.is_finished());
        if connections.is_empty() {
            return 0;
        }
        connections.remove(0).abort();
        1
    }

    /// Nothing passes any more on the connections that there are.
    pub(crate) fn fall_silent(&self) {
        self.silence.notify_waiters();
    }

    /// How long a new connection waits before anything passes.
    pub(crate) fn delay_connections(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Ordering::SeqCst);
    }
}
