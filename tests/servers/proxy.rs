//! A relay between a store and its server that can cut connections.

use std::sync::{Arc, Mutex};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) addr: String,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Proxy {
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let connections = Arc::<Mutex<Vec<AbortHandle>>>::default();
        let relayed = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let server = server.clone();
                let relay = tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        drop(copy_bidirectional(&mut client, &mut server).await);
                    }
                });
                relayed.lock().unwrap().push(relay.abort_handle());
            }
        });
        Self { addr, connections }
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
}
