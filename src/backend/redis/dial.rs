//! Opens a stream to a server.

use std::{io, time::Duration};

use futures_util::future::select_ok;
use redis::io::tcp::{
    TcpSettings,
    socket2::{SockRef, TcpKeepalive},
};
use tokio::net::{TcpStream, lookup_host};

use super::RedisOptions;
use crate::{Result, backend::remote::unreachable};

/// The options of TCP sockets.
pub(super) fn tcp_settings(options: &RedisOptions) -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(options.tcp_nodelay).set_keepalive(keepalive);
    // The kernel takes milliseconds as an `int`.
    #[cfg(target_os = "linux")]
    let settings =
        settings.set_user_timeout(options.write_timeout.min(Duration::from_millis(i32::MAX as u64)));
    settings
}

/// Connects to a host. `server` is how errors name it.
pub(super) async fn open(settings: &TcpSettings, host: &str, port: u16, server: &str) -> Result<TcpStream> {
    let unreached = |error: io::Error| unreachable(server, Some(&error));
    let addresses = lookup_host((host, port)).await.map_err(unreached)?;
    // Tries all addresses of the name at once and takes the first that accepts.
    let dials: Vec<_> = addresses.map(|address| Box::pin(TcpStream::connect(address))).collect();
    if dials.is_empty() {
        return Err(unreachable(server, None));
    }
    let (stream, _) = select_ok(dials).await.map_err(unreached)?;
    let set_up = || {
        stream.set_nodelay(settings.nodelay())?;
        let socket = SockRef::from(&stream);
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(settings.user_timeout())?;
        settings.keepalive().map_or(Ok(()), |keepalive| socket.set_tcp_keepalive(keepalive))
    };
    set_up().map_err(unreached)?;
    Ok(stream)
}
/// Connects to a Unix socket. `server` is how errors name it.
#[cfg(unix)]
pub(super) async fn socket(path: &str, server: &str) -> Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::connect(path).await.map_err(|error| unreachable(server, Some(&error)))
}

#[cfg(not(unix))]
pub(super) async fn socket(_: &str, server: &str) -> Result<TcpStream> {
    Err(unreachable(server, None))
}
