//! One connection: its requests, and its clean-up after dropped ones.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::{AsyncMessage, Client, Error as DriverError, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    error::{self, SERVER, State},
    statement::{STATEMENTS, Sql},
};
use crate::{
    Result,
    backend::remote::{Effect, deadline_passed, pool::Reuse, reply_timeout},
};

/// A connection and the statements that are prepared on it.
pub(super) struct Connection {
    pub(super) client: Client,
    prepared: [Option<Statement>; STATEMENTS],
    /// The incarnation of the server, once it was queried.
    pub(super) incarnation: Option<String>,
    /// A request is running, or was dropped: its reply may still come.
    pub(super) is_dirty: bool,
    /// A transaction may be open.
    pub(super) in_transaction: bool,
    /// The server may have prepared a statement that is not in `prepared`.
    pub(super) is_preparing: bool,
    /// It must not be used again.
    is_retired: AtomicBool,
    heard: Arc<Heard>,
    opened: Instant,
    /// Ends its task, if that is our own.
    driver: Option<AbortHandle>,
    /// TLS for cancel requests. None behind a pooler: some cancel requests crash PgBouncer 1.18, and it
    /// closes the server's connection when a client is gone.
    cancel_tls: Option<MakeRustlsConnect>,
}

/// What the server said without being asked.
#[derive(Default)]
struct Heard {
    /// A notice, since it was asked to cancel.
    has_notice: AtomicBool,
    /// Notifications, and the end of the connection.
    rung: Notify,
}

/// What the driver returns for each message of the server.
type Message = Result<AsyncMessage, DriverError>;

impl Connection {
    pub(super) fn new(client: Client, cancel_tls: Option<MakeRustlsConnect>) -> Self {
        Self {
            client,
            prepared: [const { None }; STATEMENTS],
            incarnation: None,
            is_dirty: false,
            in_transaction: false,
            is_preparing: false,
            is_retired: AtomicBool::new(false),
            heard: Arc::default(),
            opened: Instant::now(),
            driver: None,
            cancel_tls,
        }
    }

    /// Drives the connection in a task by `poll_message`: awaiting it would log the server's notices, which
    /// can quote values.
    pub(super) fn driven_by(
        mut self,
        mut poll_message: impl FnMut(&mut Context<'_>) -> Poll<Option<Message>> + Send + 'static,
    ) -> Self {
        let heard = self.heard.clone();
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(&mut poll_message).await {
                match message {
                    AsyncMessage::Notice(_) => heard.has_notice.store(true, Ordering::SeqCst),
                    AsyncMessage::Notification(_) => heard.rung.notify_one(),
                    _ => {}
                }
            }
            heard.rung.notify_one();
        });
        self.driver = Some(driver.abort_handle());
        self
    }

    /// Ends at a notification, or when the connection does.
    pub(super) async fn rung(&self) {
        self.heard.rung.notified().await;
    }

    fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Retires a connection to a read-only server, since the next one may lead to a primary. The minimum age
    /// limits refused writes to one new connection per second for each slot of the pool.
    pub(super) fn retire_read_only(&self) {
        if self.opened.elapsed() >= READ_ONLY_MIN_AGE {
            self.retire();
        }
    }

    /// Sends a request and waits for its reply until the deadline.
    ///
    /// The connection is dirty until the reply is there, so that it stays dirty if this future is dropped.
    pub(super) async fn exchange<T>(
        &mut self,
        effect: Effect,
        deadline: Instant,
        cancel_at: Option<Instant>,
        request: impl AsyncFnOnce(&Client) -> Result<T, DriverError>,
    ) -> Result<T> {
        if Instant::now() >= deadline {
            return Err(deadline_passed());
        }
        self.is_dirty = true;
        let (result, state) = self.reply(effect, deadline, cancel_at, request(&self.client)).await;
        self.is_dirty = state == State::Dirty;
        match state {
            State::Ready | State::Dirty => {}
            State::Unusable => self.retire(),
            State::ReadOnly => self.retire_read_only(),
        }
        result
    }

    /// The result of a request, and the state of the connection after it.
    async fn reply<T>(
        &self,
        effect: Effect,
        deadline: Instant,
        cancel_at: Option<Instant>,
        request: impl Future<Output = Result<T, DriverError>>,
    ) -> (Result<T>, State) {
        let mut request = pin!(request);
        let mut reply = timeout_at(cancel_at.unwrap_or(deadline), request.as_mut()).await;
        if reply.is_err() && cancel_at.is_some() {
            // Boxed, because few calls get here.
            reply = Box::pin(timeout_at(deadline, async {
                tokio::select! {
                    biased;
                    reply = request.as_mut() => return reply,
                    () = self.cancel() => {}
                }
                request.await
            }))
            .await;
            // A commit that was waiting for a replica ends without it then, with a notice and a successful
            // reply.
            if matches!(reply, Ok(Ok(_))) && self.heard.has_notice.load(Ordering::SeqCst) {
                return (Err(reply_timeout(SERVER, effect)), State::Ready);
            }
        }
        match reply {
            Ok(Ok(reply)) => (Ok(reply), State::Ready),
            Ok(Err(error)) => (Err(error::of_request(&error, effect)), error::state_after(&error)),
            Err(_) => (Err(reply_timeout(SERVER, effect)), State::Dirty),
        }
    }

    /// When a write is cancelled: shortly before the deadline, so that the server reports that it was not
    /// applied. None if the time is too short.
    pub(super) fn cancel_at(&self, effect: Effect, deadline: Instant) -> Option<Instant> {
        if effect == Effect::Read || self.cancel_tls.is_none() {
            return None;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let reserved = (left / 4).min(Duration::from_millis(500));
        (reserved >= Duration::from_millis(10)).then(|| deadline - reserved)
    }

    /// Asks the server to cancel the request, and retires the connection, since that may arrive late.
    async fn cancel(&self) {
        self.retire();
        self.heard.has_notice.store(false, Ordering::SeqCst);
        if let Some(tls) = self.cancel_tls.clone() {
            drop(self.client.cancel_token().cancel_query(tls).await);
        }
    }

    pub(super) fn is_prepared(&self, statement: Sql) -> bool {
        self.prepared[statement as usize].is_some()
    }

    /// Prepares a statement, unless it is prepared.
    pub(super) async fn prepare(
        &mut self,
        statement: Sql,
        text: &str,
        deadline: Instant,
    ) -> Result<Statement> {
        if let Some(prepared) = &self.prepared[statement as usize] {
            return Ok(prepared.clone());
        }
        self.is_preparing = true;
        let prepare = async |client: &Client| client.prepare(text).await;
        let result = self.exchange(Effect::Read, deadline, None, prepare).await;
        self.is_preparing = self.is_dirty;
        let prepared = result?;
        self.prepared[statement as usize] = Some(prepared.clone());
        Ok(prepared)
    }

    pub(super) fn forget(&mut self, statement: Sql) {
        self.prepared[statement as usize] = None;
    }

    /// Cancels the running request and closes the connection. A server that responds holds no locks then.
    async fn close(&mut self) {
        self.retire();
        let Some(tls) = self.cancel_tls.take() else { return };
        let replied = async {
            // A statement that keeps running would hold its locks.
            drop(self.client.cancel_token().cancel_query(tls).await);
            drop(self.client.batch_execute("").await);
        };
        self.is_dirty = timeout(CLOSE_TIMEOUT, replied).await.is_err();
    }
}

impl Reuse for Connection {
    fn is_dead(&self) -> bool {
        self.is_dirty || self.is_retired() || self.client.is_closed()
    }

    fn needs_cleanup(&self) -> bool {
        !self.client.is_closed() && (self.is_dirty || self.in_transaction && !self.is_retired())
    }

    /// Waits for the outstanding reply and rolls back an open transaction. If that takes too long, cancels
    /// the request and closes the connection.
    async fn clean_up(&mut self) {
        let text = match (self.in_transaction, self.is_preparing) {
            (false, false) => "",
            (true, false) => "ROLLBACK",
            (false, true) => "DEALLOCATE ALL",
            (true, true) => "ROLLBACK; DEALLOCATE ALL",
        };
        if self.is_preparing {
            self.prepared = [const { None }; STATEMENTS];
        }
        self.is_dirty = true;
        if !self.is_retired() {
            // The driver reads the reply to a dropped request before the reply to this one.
            let done = timeout(CLEANUP_TIMEOUT, self.client.batch_execute(text)).await;
            if matches!(done, Ok(Ok(()))) {
                (self.is_dirty, self.in_transaction, self.is_preparing) = (false, false, false);
                return;
            }
        }
        self.close().await;
    }
}

/// How long a connection to a read-only server is kept at least.
const READ_ONLY_MIN_AGE: Duration = Duration::from_secs(1);

/// How long the reply to a dropped call may take before the request is cancelled.
const CLEANUP_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the cancellation may take before the connection is closed anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Drop for Connection {
    fn drop(&mut self) {
        // Otherwise the task terminates the connection in order, after the last reply.
        if let Some(driver) = self.driver.as_ref().filter(|_| self.is_dirty) {
            driver.abort();
        }
    }
}
