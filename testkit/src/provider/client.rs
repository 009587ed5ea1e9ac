//! A client of the provider.

use std::{fmt, time::Duration};

use futures_util::future::join;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::Issued;

/// The time for which an access token is said to be valid.
pub(super) const EXPIRES_IN: Duration = Duration::from_secs(3600);

/// What a login or a refresh returns.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The access token.
    pub access_token: String,
    /// The refresh token, to be used once.
    pub refresh_token: String,
    /// The time for which the access token is valid.
    pub expires_in: Duration,
}

impl Tokens {
    pub(super) fn of(issued: &Issued) -> Self {
        let Issued { access, refresh } = issued.clone();
        Self { access_token: access, refresh_token: refresh, expires_in: EXPIRES_IN }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Why there are no new tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The refresh token is not valid.
    InvalidGrant,
    /// 429 or 5xx: not now. The token was not spent.
    Retry {
        /// The status.
        status: u16,
        /// The time of `Retry-After`.
        after: Option<Duration>,
    },
    /// There is no reply, or only a part of it: the token may be spent.
    Lost,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidGrant => f.write_str("the provider rejects the refresh token"),
            Self::Retry { status, .. } => write!(f, "the provider answers with {status}"),
            Self::Lost => f.write_str("the provider's answer is lost"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Spends a refresh token at the provider of this address, over a connection of its own.
///
/// # Errors
///
/// See [`Refusal`].
pub async fn refresh(address: &str, refresh_token: &str) -> Result<Tokens, Refusal> {
    refresh_as(address, refresh_token, "").await
}

/// As [`refresh`], with a `client_id`, which the provider keeps with [each use](super::Use).
///
/// # Errors
///
/// See [`Refusal`].
pub async fn refresh_as(address: &str, refresh_token: &str, client: &str) -> Result<Tokens, Refusal> {
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("refresh_token", refresh_token)
        .append_pair("client_id", client)
        .finish();
    let request = Request::post("/token")
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form)))
        .unwrap();
    let connection = TcpStream::connect(address).await.map_err(|_| Refusal::Lost)?;
    connection.set_nodelay(true).map_err(|_| Refusal::Lost)?;
    let handshake = http1::handshake(TokioIo::new(connection)).await;
    let (mut sender, connection) = handshake.map_err(|_| Refusal::Lost)?;
    // It owns the sender, whose end closes the connection.
    let exchange = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
    };
    let (head, body) = join(exchange, connection).await.0.map_err(|_| Refusal::Lost)?;
    let body: Value = serde_json::from_slice(&body).map_err(|_| Refusal::Lost)?;
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    match head.status {
        StatusCode::OK => Ok(Tokens {
            access_token: text("access_token").expect("an access token"),
            refresh_token: text("refresh_token").expect("a refresh token"),
            expires_in: Duration::from_secs(body["expires_in"].as_u64().expect("a time")),
        }),
        StatusCode::BAD_REQUEST if body["error"] == "invalid_grant" => Err(Refusal::InvalidGrant),
        status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
            let after = head.headers.get(header::RETRY_AFTER).map(|after| after.to_str().expect("seconds"));
            let after = after.map(|after| Duration::from_secs(after.parse().expect("seconds")));
            Err(Refusal::Retry { status: status.as_u16(), after })
        }
        status => panic!("the provider does not understand the request: {status}"),
    }
}
