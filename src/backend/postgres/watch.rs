//! Watches: looks at the change table when a notification comes, and every two seconds.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_core::Stream;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    LABEL, Postgres, PostgresOptions,
    changes::{self, Place, Run, Seen},
    connection::Connection,
    dial::Dialer,
    server::{Call, Server},
    statement::{Parameter, Reply, Sql},
};
use crate::{
    Backend, Error, Result,
    backend::{
        feed::{Change, IDLE_EVERY, Source, Teller},
        remote::{Effect, pool::Dial},
    },
    capability::Watch,
    event::{Cursor, Event, WatchOptions},
};

/// The shortest pause between two looks. A look that takes longer is followed by as long a pause.
const PAUSE: Duration = Duration::from_millis(3);

/// How often old rows are deleted, if there was something to tell.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

impl Watch for Postgres {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        self.server.feed.watch(Changes(self.server.clone()), options)
    }
}

impl Postgres {
    /// Creates the tables and triggers that the first watch would create. Safe to repeat.
    ///
    /// For a database whose programs have no right to create them. The schema must be there: see
    /// [`migrate`](Self::migrate).
    ///
    /// # Errors
    ///
    /// Errors of the server, and [`Denied`](crate::ErrorKind::Denied) if the role may not create them.
    pub async fn prepare_watch(options: PostgresOptions) -> Result<()> {
        let postgres = Self::new(options, true).await?;
        let created = changes::install(&postgres.server, true).await;
        postgres.close().await.and(created)
    }
}

/// The change table of a server.
#[derive(Clone)]
struct Changes(Arc<Server>);

impl Source for Changes {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        self.look_again(teller).await
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        let Some(place) = Place::read(LABEL, cursor) else { return Ok(None) };
        match changes::look(&self.0, &mut Line(None), Some(&place)).await {
            Ok(seen) => Ok(seen.map(|seen| seen.changes)),
            Err(error) if is_wrong_cursor(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The server can't read the snapshot, or the tables are gone.
fn is_wrong_cursor(error: &Error) -> bool {
    error.code().is_some_and(|code| code.starts_with("22")) || is_missing(error)
}

fn is_missing(error: &Error) -> bool {
    matches!(error.code(), Some("42P01" | "3F000"))
}

impl Changes {
    async fn look_again(&self, teller: &Teller) -> Result<Infallible> {
        let server = &*self.0;
        let mut line = Line::connect(server).await?;
        let mut last = teller.last().and_then(|cursor| Place::read(LABEL, &cursor));
        let mut pruned: Option<Instant> = None;
        loop {
            let resumed = match last.take() {
                Some(place) => look(server, &mut line, &place).await?,
                None => None,
            };
            let mut place = match resumed {
                Some(seen) => {
                    teller.resumed();
                    tell(teller, seen)
                }
                None => {
                    let place = changes::begin(server, &mut line).await?;
                    teller.started(Some(place.cursor(LABEL)));
                    place
                }
            };
            server.bell.set_watched(&server.own);
            let mut idle_at = Instant::now() + IDLE_EVERY;
            let mut is_pruning_due = true;
            loop {
                drop(timeout_at(idle_at, line.rung(server)).await);
                line.renew(server).await?;
                let begun = Instant::now();
                let Some(seen) = look(server, &mut line, &place).await? else { break };
                is_pruning_due |= !seen.changes.is_empty();
                place = tell(teller, seen);
                if begun >= idle_at {
                    teller.idle(Some(place.cursor(LABEL)));
                    idle_at = begun + IDLE_EVERY;
                    if is_pruning_due && pruned.is_none_or(|pruned| pruned.elapsed() >= PRUNE_EVERY) {
                        is_pruning_due = changes::prune(server, &mut line).await?;
                        pruned = (!is_pruning_due).then_some(begun);
                    }
                }
                sleep(PAUSE.max(begun.elapsed())).await;
            }
            // So that a clock that jumps to and fro makes no load.
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn tell(teller: &Teller, seen: Seen) -> Place {
    teller.tell(seen.changes, Some(seen.place.cursor(LABEL)));
    seen.place
}

/// As [`changes::look`]. If the tables are gone, changes may have been missed.
async fn look(server: &Server, line: &mut Line, place: &Place) -> Result<Option<Seen>> {
    match changes::look(server, line, Some(place)).await {
        Err(error) if is_wrong_cursor(&error) => Ok(None),
        seen => seen,
    }
}

/// The connection of a watch: its own, which hears notifications. Behind a pooler notifications are not
/// heard, so there it is any connection.
struct Line(Option<(Connection, Instant)>);

impl Line {
    async fn connect(server: &Server) -> Result<Self> {
        if server.options.pgbouncer {
            return Ok(Self(None));
        }
        let mut connection = Dialer::new(&server.options, server.tls.clone(), false)?.dial().await?;
        let call = server.call(server.options.deadline)?;
        let listen = format!("LISTEN {}", server.channel());
        call.execute_on(&mut connection, Effect::Read, &listen).await?;
        Ok(Self(Some((connection, Instant::now()))))
    }

    /// Ends when changes may have been made.
    async fn rung(&self, server: &Server) {
        match &self.0 {
            Some((connection, _)) => connection.rung().await,
            None => server.bell.rung().await,
        }
    }

    /// Replaces an old connection, so that a new server or new certificates are used.
    async fn renew(&mut self, server: &Server) -> Result<()> {
        let longest = server.options.max_lifetime;
        let is_old =
            self.0.as_ref().is_some_and(|(_, opened)| !longest.is_zero() && opened.elapsed() > longest);
        if is_old {
            *self = Self::connect(server).await?;
        }
        Ok(())
    }
}

impl Run for Line {
    async fn run(
        &mut self,
        call: &Call<'_>,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Reply> {
        match &mut self.0 {
            Some((connection, _)) => call.run_on(connection, effect, statement, parameters).await,
            None => call.run(effect, statement, parameters).await,
        }
    }
}
