//! The source of a feed, and the task that runs it.

use std::{convert::Infallible, mem::take, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    ring::{Change, State},
    shared::Shared,
};
use crate::{Result, event::Cursor, layer::system_name};

/// How often a source that has nothing to tell says so. The contract promises 5 s.
pub(crate) const IDLE_EVERY: Duration = Duration::from_secs(2);

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// Pauses before something is tried again: random times up to a limit that doubles, so that processes that
/// were cut off at the same time do not come back at the same time.
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    pub(crate) async fn next(&mut self) {
        sleep(self.0.mul_f64(fastrand::f64())).await;
        self.0 = LONGEST_PAUSE.min(self.0 * 2);
    }
}

/// Where the changes come from. It is a handle that does not keep the store open.
pub(crate) trait Source: Clone + Send + Sync + 'static {
    /// Tells what changes, until it can't go on.
    ///
    /// Calls [`Teller::started`] or [`Teller::resumed`] once every later change will be told, and
    /// [`Teller::idle`] about every [`IDLE_EVERY`] as long as nothing is missed. It is called again after a
    /// pause if the error is one that waiting can heal, and dropped when the last watcher is gone.
    fn follow(&self, teller: &Teller) -> impl Future<Output = Result<Infallible>> + Send;

    /// The changes since this cursor until now, from another source than the feed. `None`: they are not
    /// known.
    fn since(&self, cursor: &Cursor) -> impl Future<Output = Result<Option<Vec<Change>>>> + Send;
}

/// What a source tells.
pub(crate) struct Teller {
    pub(super) shared: Arc<Shared>,
    pub(super) task: u64,
}

impl Teller {
    async fn run(&self, source: impl Source) {
        // If the task is aborted, or its runtime ends, watchers must not believe that it goes on.
        let _stopped = Stopped(self);
        let label = self.shared.label;
        let mut pauses = Pauses::default();
        loop {
            let Err(error) = source.follow(self).await;
            let mut was_live = false;
            self.update(|state| was_live = take(&mut state.is_live));
            if !error.passes() {
                return self.shared.end(error);
            }
            if was_live {
                pauses = Pauses::default();
            }
            let system = system_name(label);
            tracing::warn!(
                target: "gateway_storage",
                system,
                error = %error,
                "a watch was cut off; it connects again"
            );
            metrics::counter!("gateway_storage.watch.reconnects", "db.system.name" => system).increment(1);
            pauses.next().await;
        }
    }

    /// Changes the state, unless another task follows the source now.
    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.shared.lock();
        if state.tasks == self.task {
            change(&mut state);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// The cursor that was told last, to go on from there.
    pub(crate) fn last(&self) -> Option<Cursor> {
        self.shared.lock().cursor.clone()
    }

    /// Every change from now on is told, and those since the last one may have been missed.
    pub(crate) fn started(&self, cursor: Option<Cursor>) {
        self.update(|state| {
            (state.cursor, state.is_live) = (cursor, true);
            state.push(None);
        });
    }

    /// Every change since the last one that was told is told from now on.
    pub(crate) fn resumed(&self) {
        self.update(|state| state.is_live = true);
    }

    /// Tells changes, and the cursor after them. Before the last of them the earlier cursor holds.
    pub(crate) fn tell(&self, changes: impl IntoIterator<Item = Change>, cursor: Option<Cursor>) {
        self.update(|state| {
            let mut changes = changes.into_iter().peekable();
            while let Some(change) = changes.next() {
                if changes.peek().is_none() {
                    state.cursor.clone_from(&cursor);
                }
                state.push(Some(change));
            }
        });
    }

    /// Tells that nothing was missed until this cursor.
    pub(crate) fn idle(&self, cursor: Option<Cursor>) {
        self.update(|state| {
            state.cursor = cursor;
            state.idles += 1;
        });
    }
}

/// Says that the source does not run, when it is dropped.
struct Stopped<'t>(&'t Teller);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.update(|state| state.is_live = false);
    }
}

/// Runs the source in a task, if it does not run. The runtime of an earlier task may be gone.
pub(super) fn run<S: Source>(shared: &Arc<Shared>, source: &S) {
    let mut state = shared.lock();
    if state.ended.is_some() || state.task.as_ref().is_some_and(|task| !task.is_finished()) {
        return;
    }
    state.tasks += 1;
    let (teller, source) = (Teller { shared: shared.clone(), task: state.tasks }, source.clone());
    state.task = Some(tokio::spawn(async move { teller.run(source).await }).abort_handle());
}
