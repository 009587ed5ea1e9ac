//! What the servers have pushed and the watchers have not been told.

use std::{
    convert::Infallible,
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redis::{PushInfo, PushKind, Value};
use tokio::{sync::Notify, task::consume_budget};

use super::layout::{Layout, Space};
use crate::{
    Error, ErrorKind, Key,
    backend::feed::{Change, Pauses, Teller},
    history::DocumentKind,
};

/// The changes of all masters, until they are told. Those of the same record or hash are merged.
pub(super) struct Pushed {
    layout: Arc<Layout>,
    config: String,
    untold: Mutex<Untold>,
    changed: Notify,
}

#[derive(Default)]
struct Untold {
    credentials: Vec<Key>,
    /// A credential was changed whose key is not valid.
    has_unnamed: bool,
    has_config: bool,
    /// Anything may have changed.
    has_all: bool,
    is_lost: bool,
}

/// With more keys than this all records are read again.
const MOST: usize = 8192;

impl Pushed {
    pub(super) fn new(layout: &Arc<Layout>) -> Arc<Self> {
        Arc::new(Self {
            layout: layout.clone(),
            config: layout.config(),
            untold: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Untold> {
        // Nothing under the lock panics.
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a server pushes. The driver calls it before it hands out the replies that come later.
    pub(super) fn receive(&self, info: PushInfo) -> Result<(), Infallible> {
        let mut untold = self.lock();
        match (info.kind, info.data.into_iter().next()) {
            (PushKind::Invalidate, Some(Value::Array(names))) => {
                names.into_iter().for_each(|name| self.add(&mut untold, name));
            }
            // FLUSHALL and FLUSHDB name no key.
            (PushKind::Invalidate, _) => untold.has_all = true,
            (PushKind::Disconnection, _) => untold.is_lost = true,
            _ => return Ok(()),
        }
        if untold.credentials.len() > MOST {
            (untold.credentials, untold.has_all) = (Vec::new(), true);
        }
        drop(untold);
        self.changed.notify_one();
        Ok(())
    }

    fn add(&self, untold: &mut Untold, name: Value) {
        let Value::BulkString(name) = name else {
            untold.has_all = true;
            return;
        };
        if name == self.config.as_bytes() {
            untold.has_config = true;
        } else if let Some((Space::Credential, key)) = self.layout.record(&name) {
            match key {
                Ok(key) => untold.credentials.push(key),
                Err(_) => untold.has_unnamed = true,
            }
        }
    }

    /// Tells the changes. Returns false if that takes a Resync, which comes later.
    pub(super) fn tell(&self, teller: &Teller) -> bool {
        let mut untold = self.lock();
        if untold.has_all || untold.is_lost {
            return false;
        }
        let changed = take(&mut *untold);
        drop(untold);
        let any =
            [(DocumentKind::Config, changed.has_config), (DocumentKind::Credential, changed.has_unnamed)];
        let any = any.into_iter().filter(|(_, has_any)| *has_any).map(|(kind, _)| (kind, None));
        let named = changed.credentials.into_iter().map(|key| (DocumentKind::Credential, Some(key)));
        let changes: Vec<Change> = any.chain(named).collect();
        if !changes.is_empty() {
            teller.tell(changes, None);
        }
        true
    }

    /// Tells each change when it is pushed, until a connection is lost.
    pub(super) async fn tell_all(&self, teller: &Teller) -> Error {
        loop {
            // Under load this would otherwise keep the checks of the masters from running.
            consume_budget().await;
            self.changed.notified().await;
            if self.tell(teller) {
                continue;
            }
            if self.lock().is_lost {
                return lost();
            }
            // FLUSHALL reaches all watchers at once. They must not all read again at once.
            Pauses::default().next().await;
            // What comes after this is told after the Resync.
            let is_lost = take(&mut *self.lock()).is_lost;
            teller.started(None);
            if is_lost {
                return lost();
            }
        }
    }
}

#[cold]
fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "a connection on which a Redis server tells its changes was lost")
}
