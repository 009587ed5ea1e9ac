//! The HTTP of the provider: `POST /token`, with a form.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Answer, Issued, State, client::EXPIRES_IN};

/// Serves on a free port, and returns the address.
pub(super) async fn start(state: Arc<Mutex<State>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                connection.set_nodelay(true).unwrap();
                // The grant does not end with its connection.
                let service = service_fn(|request| {
                    let answer = tokio::spawn(answer(Arc::clone(&state), request));
                    async { answer.await.unwrap() }
                });
                // The error of a connection that was dropped as planned, or by the client.
                drop(http1::Builder::new().serve_connection(TokioIo::new(connection), service).await);
            });
        }
    });
    address
}

/// The connection is closed without a reply, or in the middle of it.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is dropped as planned")
    }
}

impl std::error::Error for Dropped {}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Reply>, Dropped> {
    if (request.method(), request.uri().path()) != (&Method::POST, "/token") {
        return Ok(reply(StatusCode::NOT_FOUND, &json!({})));
    }
    let body = request.into_body().collect().await.map_err(|_| Dropped)?.to_bytes();
    let (mut is_refresh, mut token, mut client) = (false, None, String::new());
    for (name, value) in form_urlencoded::parse(&body) {
        match &*name {
            "grant_type" => is_refresh = value == "refresh_token",
            "refresh_token" => token = Some(value.into_owned()),
            "client_id" => client = value.into_owned(),
            _ => {}
        }
    }
    let Some(token) = token.filter(|_| is_refresh) else {
        return Ok(reply(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_request" })));
    };
    let (planned, latency) = {
        let mut state = state.lock().unwrap();
        (state.planned(&token), state.latency)
    };
    let grant = || state.lock().unwrap().grant(&token, &client);
    match planned {
        Answer::Usual => {
            wait(latency.mul_f64(fastrand::f64())).await;
            let granted = grant();
            wait(latency.mul_f64(fastrand::f64())).await;
            Ok(tokens(granted))
        }
        Answer::Slow(delay) => {
            wait(delay).await;
            Ok(tokens(grant()))
        }
        Answer::Late(delay) => {
            let granted = grant();
            wait(delay).await;
            Ok(tokens(granted))
        }
        Answer::LoseRequest => Err(Dropped),
        Answer::LoseReply => {
            grant();
            Err(Dropped)
        }
        Answer::CutReply => Ok(tokens(grant()).map(Reply::cut)),
        Answer::TooMany(pause) => {
            let mut reply = reply(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": "slow_down" }));
            reply.headers_mut().insert(header::RETRY_AFTER, pause.as_secs().into());
            Ok(reply)
        }
        Answer::Fail => Ok(reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": "server_error" }))),
        Answer::Refuse => Ok(tokens(None)),
    }
}

/// A timer of zero would end after a millisecond.
async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn tokens(granted: Option<Issued>) -> Response<Reply> {
    let Some(Issued { access, refresh }) = granted else {
        return reply(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_grant" }));
    };
    let body = json!({
        "access_token": access,
        "refresh_token": refresh,
        "expires_in": EXPIRES_IN.as_secs(),
        "token_type": "Bearer",
    });
    reply(StatusCode::OK, &body)
}

fn reply(status: StatusCode, body: &Value) -> Response<Reply> {
    let part = Bytes::from(body.to_string());
    let length = part.len() as u64;
    let body = Reply { part: Some(part), length, rest: Rest::Complete };
    let json = (header::CONTENT_TYPE, "application/json");
    Response::builder().status(status).header(json.0, json.1).body(body).unwrap()
}

/// A body of which all or a part is sent.
struct Reply {
    part: Option<Bytes>,
    /// The length that the head states.
    length: u64,
    rest: Rest,
}

enum Rest {
    Complete,
    /// The part has yet to be written to the connection.
    Cut,
    Lost,
}

impl Reply {
    fn cut(mut self) -> Self {
        self.part = self.part.map(|part| part.slice(..part.len() / 2));
        self.rest = Rest::Cut;
        self
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Dropped;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Dropped>>> {
        if let Some(part) = self.part.take() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        match self.rest {
            Rest::Complete => Poll::Ready(None),
            Rest::Cut => {
                // hyper writes what it has when it gets nothing.
                self.rest = Rest::Lost;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Rest::Lost => Poll::Ready(Some(Err(Dropped))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
