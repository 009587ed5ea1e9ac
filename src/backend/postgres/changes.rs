//! The tables and triggers of watches, and a place in the changes.
//!
//! Triggers on `credentials` and `configs` add a row to `changes` for each change, with the number of its
//! transaction. A reader asks for the rows that its last snapshot does not show: that is exact in whatever
//! order transactions commit, which a number per row is not.
//!
//! The triggers add rows only until the time in the sequence `watch_until`, which watchers put off. It is a
//! sequence because one is read outside of snapshots: the trigger of a transaction with an old snapshot sees
//! the newest value. Each watched period has a number, `watch_epoch`.

use std::{fmt::Write, time::Duration};

use tokio::time::sleep;
use tokio_postgres::Row;

use super::{
    error,
    server::{Call, Server},
    session::Session,
    settings::lock_of,
    statement::{Parameter, Reply, Sql, column, key},
};
use crate::{
    Error, ErrorKind, Result,
    backend::{feed::Change, remote::Effect},
    event::Cursor,
    history::DocumentKind,
};

/// The version of the tables and triggers below.
const VERSION: i64 = 1;

/// What is told at once. A look that finds more says that changes were missed.
const MOST: usize = 8192;

/// A longer snapshot is shortened in a cursor, so that some changes are told twice.
const LONGEST_SNAPSHOT: usize = 3500;

const TABLES: &str = "CREATE TABLE IF NOT EXISTS {s}.changes \
    (xid xid8 NOT NULL DEFAULT pg_current_xact_id(), kind smallint NOT NULL, key text COLLATE \"C\"); \
    CREATE INDEX IF NOT EXISTS changes_xid ON {s}.changes (xid); \
    CREATE SEQUENCE IF NOT EXISTS {s}.watch_until; CREATE SEQUENCE IF NOT EXISTS {s}.watch_epoch; \
    CREATE TABLE IF NOT EXISTS {s}.watch \
    (version int NOT NULL, settled bigint NOT NULL, pruned xid8 NOT NULL, mark xid8 NOT NULL, marked timestamptz NOT NULL); \
    INSERT INTO {s}.watch SELECT 1, 0, '0', pg_snapshot_xmin(pg_current_snapshot()), now() \
    WHERE NOT EXISTS (SELECT FROM {s}.watch)";

/// What a trigger runs, with the rights of the role that made it: a role that writes needs no others. All
/// names have a schema, because the writer can set the search path. `changed` is the trigger's.
const FUNCTION: &str = "BEGIN IF pg_catalog.pg_sequence_last_value('{s}.watch_until'::pg_catalog.regclass) \
    OPERATOR(pg_catalog.>) pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) THEN \
    IF TG_NARGS OPERATOR(pg_catalog.=) 0 THEN INSERT INTO {s}.changes (kind, key) SELECT {kind}, {id} FROM changed; \
    ELSE INSERT INTO {s}.changes (kind) VALUES ({kind}); END IF; \
    END IF; RETURN NULL; END";

/// The watched tables, with the kind of record in `changes` and the column of its key.
const WATCHED: [(&str, DocumentKind, &str); 2] =
    [("credentials", DocumentKind::Credential, "id"), ("configs", DocumentKind::Config, "key")];

/// The triggers of each table. An argument means that no keys are known, so any record may have changed.
const TRIGGERS: [(&str, &str, &str); 5] = [
    ("watch_insert", "INSERT ON {t} REFERENCING NEW TABLE AS changed", ""),
    ("watch_update", "UPDATE ON {t} REFERENCING NEW TABLE AS changed", ""),
    ("watch_delete", "DELETE ON {t} REFERENCING OLD TABLE AS changed", ""),
    ("watch_rename", "UPDATE OF {id} ON {t}", "'any'"),
    ("watch_truncate", "TRUNCATE ON {t}", "'any'"),
];

const fn number_of(kind: DocumentKind) -> i64 {
    match kind {
        DocumentKind::Credential => 1,
        DocumentKind::Config => 2,
    }
}

fn change(row: &Row) -> Result<Change> {
    let kind = match column::<i64>(row, 6)? {
        1 => DocumentKind::Credential,
        2 => DocumentKind::Config,
        _ => return Err(error::unexpected_reply()),
    };
    // A key that this crate does not accept, of another program, can be none that it reads.
    let name = column::<Option<&str>>(row, 7)?.map(|_| key(row, 7));
    Ok((kind, name.transpose().ok().flatten()))
}

/// A place in the changes: all that the snapshot shows are before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// The server's start, the database, its tables and the watched period. In another one, the snapshot has
    /// no meaning.
    life: String,
    snapshot: String,
}

impl Place {
    fn is_of(&self, epoch: i64) -> bool {
        self.life.rsplit('.').next() == Some(&*epoch.to_string())
    }

    pub(super) fn cursor(&self, label: &'static str) -> Cursor {
        let Self { life, snapshot } = self;
        if snapshot.len() <= LONGEST_SNAPSHOT {
            return Cursor::at(label, format_args!("{life}:{snapshot}"));
        }
        let xmin = snapshot.split(':').next().unwrap_or_default();
        Cursor::at(label, format_args!("{life}:{xmin}:{xmin}:"))
    }

    /// The place of a cursor, if the text is one.
    pub(super) fn read(label: &'static str, cursor: &Cursor) -> Option<Self> {
        let (life, snapshot) = cursor.place(label)?.split_once(':')?;
        let is_number = |text: &str| text.parse::<u64>().is_ok_and(|number| number.to_string() == text);
        let parts: Vec<&str> = snapshot.split(':').collect();
        let [xmin, xmax, running] = parts[..] else { return None };
        let is_snapshot = is_number(xmin)
            && is_number(xmax)
            && (running.is_empty() || running.split(',').all(is_number))
            && life.split('.').all(is_number);
        is_snapshot.then(|| Self { life: life.to_owned(), snapshot: snapshot.to_owned() })
    }
}

/// What a look finds.
pub(super) struct Seen {
    pub(super) place: Place,
    pub(super) changes: Vec<Change>,
}

/// What a look found: `None` if changes may have been missed since `before`.
fn read_look(reply: &Reply, before: Option<&Place>) -> Result<Option<Seen>> {
    let row = reply.row()?;
    if column(row, 4)? {
        return Err(error::of_code("25006"));
    }
    let place = Place { life: column(row, 2)?, snapshot: column(row, 3)? };
    let is_watched = column::<f64>(row, 0)? > 0.0;
    let (is_same, is_known) = match before {
        None => (true, true),
        Some(before) => (before.life == place.life, column(row, 5)?),
    };
    if !is_watched || !is_same || !is_known || reply.rows.len() > MOST + 1 {
        return Ok(None);
    }
    let changes = reply.rows[1..].iter().map(change).collect::<Result<_>>()?;
    Ok(Some(Seen { place, changes }))
}

/// Runs the statements of watches: on a connection of its own, or on any.
pub(super) trait Run {
    fn run(
        &mut self,
        call: &Call<'_>,
        effect: Effect,
        statement: Sql,
        parameters: &[Parameter<'_>],
    ) -> impl Future<Output = Result<Reply>> + Send;
}

/// The place of now, and what has changed since another. `None`: changes may have been missed.
pub(super) async fn look(server: &Server, on: &mut impl Run, before: Option<&Place>) -> Result<Option<Seen>> {
    let call = server.call(server.options.deadline)?;
    let snapshot = before.map_or("", |place| &place.snapshot);
    let parameters = [Parameter::Text(snapshot), Parameter::Number(MOST as i64 + 1)];
    let reply =
        on.run(&call, Effect::Read, Sql::Look, &parameters).await.map_err(|error| may_use(server, error))?;
    read_look(&reply, before)
}

/// Makes the triggers add rows from now on, and returns a place after which all changes are told.
pub(super) async fn begin(server: &Server, on: &mut impl Run) -> Result<Place> {
    install(server, server.options.create).await?;
    loop {
        let epoch = settle(server, on).await.map_err(|error| may_use(server, error))?;
        // Otherwise another period began meanwhile.
        if let Some(seen) = look(server, on, None).await?
            && seen.place.is_of(epoch)
        {
            return Ok(seen.place);
        }
    }
}

/// Begins a watched period, or joins the one that is. Returns its number.
async fn settle(server: &Server, on: &mut impl Run) -> Result<i64> {
    let deadline = server.options.deadline;
    let call = server.call(deadline)?;
    on.run(&call, Effect::Read, Sql::ForgetForeign, &[]).await?;
    let state = on.run(&call, Effect::Read, Sql::WatchState, &[]).await?;
    let row = state.row()?;
    if column::<i64>(row, 0)? != VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the tables of watches were made by a later version of this crate",
        ));
    }
    let (settled, mut epoch): (i64, i64) = (column(row, 1)?, column(row, 2)?);
    if !column::<bool>(row, 3)? {
        // In this order: who sees the new time also sees the new number.
        epoch = column(on.run(&call, Effect::Read, Sql::WatchEpoch, &[]).await?.row()?, 0)?;
        on.run(&call, Effect::Read, Sql::WatchUntil, &[]).await?;
    }
    drop(call);
    if settled != epoch {
        wait_for_writers(server, on).await?;
        let call = server.call(deadline)?;
        on.run(&call, Effect::Read, Sql::WatchSettled, &[Parameter::Number(epoch)]).await?;
    }
    Ok(epoch)
}

/// Waits for the transactions whose triggers may have added no rows. Others can begin meanwhile, so they do
/// not wait, as they would for a lock of the tables.
async fn wait_for_writers(server: &Server, on: &mut impl Run) -> Result<()> {
    let mut running: Option<Vec<String>> = None;
    let mut pause = Duration::from_millis(5);
    loop {
        let call = server.call(server.options.deadline)?;
        let reply = on.run(&call, Effect::Read, Sql::Writers, &[]).await?;
        drop(call);
        let writers = reply.rows.iter().map(|row| column(row, 0)).collect::<Result<Vec<String>>>()?;
        let left = match running {
            None => writers,
            Some(running) => running.into_iter().filter(|writer| writers.contains(writer)).collect(),
        };
        if left.is_empty() {
            return Ok(());
        }
        running = Some(left);
        sleep(pause).await;
        pause = Duration::from_millis(500).min(pause * 2);
    }
}

/// Deletes old rows. Returns whether there are more.
pub(super) async fn prune(server: &Server, on: &mut impl Run) -> Result<bool> {
    let call = server.call(server.options.deadline)?;
    let reply = on.run(&call, Effect::Read, Sql::Prune, &[]).await.map_err(|error| may_use(server, error))?;
    column(reply.row()?, 0)
}

/// Creates the tables and triggers that are missing.
pub(super) async fn install(server: &Server, is_allowed: bool) -> Result<()> {
    let call = server.call(server.options.deadline)?;
    if missing(&call.run(Effect::Read, Sql::WatchTriggers, &[]).await?)?.is_empty() {
        return Ok(());
    }
    if !is_allowed {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "nothing has watched this database, and `create=false`: create the tables of watches with \
             `storage schema up --watch`",
        ));
    }
    create(&call).await.map_err(|error| match error.kind() {
        ErrorKind::Denied => error.with_message(format!(
            "the PostgreSQL role may not create the tables of watches: run `storage schema up --watch` as the role \
             that owns the schema {}",
            server.options.schema
        )),
        _ => error,
    })
}

/// The triggers that are missing, as a table and the index of a trigger.
fn missing(found: &Reply) -> Result<Vec<(usize, usize)>> {
    let mut names = Vec::new();
    for row in &found.rows {
        if !column::<bool>(row, 2)? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a trigger of watches is disabled, so changes would be missed: enable it",
            ));
        }
        names.push((column::<&str>(row, 0)?, column::<&str>(row, 1)?));
    }
    let all = (0..WATCHED.len()).flat_map(|table| (0..TRIGGERS.len()).map(move |trigger| (table, trigger)));
    Ok(all.filter(|(table, trigger)| !names.contains(&(WATCHED[*table].0, TRIGGERS[*trigger].0))).collect())
}

async fn create(call: &Call<'_>) -> Result<()> {
    let quoted = call.server.options.quoted_schema()?;
    // A writer that waits for the lock of a trigger waits for the transactions before it. So that is short,
    // and tried again later.
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '1s'; SET LOCAL client_min_messages = error; \
         SELECT pg_advisory_xact_lock({})",
        lock_of(&call.server.options.schema)
    );
    let mut session = Session::begin(call, &begin).await?;
    let missing = missing(&session.run(call, Sql::WatchTriggers, &[]).await?)?;
    let mut text = TABLES.to_owned();
    for (table, kind, id) in WATCHED {
        let body = FUNCTION.replace("{kind}", &number_of(kind).to_string()).replace("{id}", id);
        // Inside a literal, quotes are doubled, and twice in one inside of it.
        let body =
            body.replace("'{s}.", &format!("'{}.", quoted.replace('\'', "''"))).replace("{s}", &quoted);
        let body = body.replace('\'', "''");
        write!(
            text,
            "; CREATE OR REPLACE FUNCTION {quoted}.watch_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
             AS '{body}'"
        )
        .expect("writing to a String does not fail");
    }
    for (table, trigger) in missing {
        let (table, _, id) = WATCHED[table];
        let (name, event, argument) = TRIGGERS[trigger];
        let event = event.replace("{t}", &format!("{quoted}.{table}")).replace("{id}", id);
        write!(
            text,
            "; CREATE TRIGGER {name} AFTER {event} FOR EACH STATEMENT EXECUTE FUNCTION {quoted}.watch_{table}({argument})"
        )
        .expect("writing to a String does not fail");
    }
    session.execute(call, Effect::Read, &text.replace("{s}", &quoted)).await?;
    session.commit(call).await
}

/// Says what to grant.
fn may_use(server: &Server, error: Error) -> Error {
    if error.code() != Some("42501") {
        return error;
    }
    let schema = &server.options.schema;
    error.with_message(format!(
        "the PostgreSQL role may not use the tables of watches: GRANT SELECT, UPDATE, DELETE ON {schema}.changes, \
         {schema}.watch and GRANT SELECT, UPDATE ON SEQUENCE {schema}.watch_until, {schema}.watch_epoch"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(life: &str, snapshot: &str) -> Place {
        Place { life: life.to_owned(), snapshot: snapshot.to_owned() }
    }

    #[test]
    fn a_cursor_is_a_place() {
        let place = place("1764511200000000.5.16384.16385.16386.1", "742:745:742,743");
        let cursor = place.cursor("postgres");
        assert_eq!(cursor.as_str(), "postgres:1764511200000000.5.16384.16385.16386.1:742:745:742,743");
        assert_eq!(Place::read("postgres", &cursor), Some(place));
        let wrong = [
            "",
            "1.2",
            "1.2:",
            "1.2:3:4",
            "1.2:3:4:5:6",
            "1.2:3:x:",
            "1.2:3:4:5,",
            "1.a:3:4:",
            "1:-3:4:",
            "1:03:4:",
        ];
        for text in wrong {
            assert_eq!(Place::read("postgres", &Cursor::at("postgres", text)), None, "{text}");
        }
        assert_eq!(Place::read("redis", &cursor), None);
    }

    proptest! {
        /// No text panics, and what is read from one is written as it was.
        #[test]
        fn any_text_is_read(text in "[0-9.:,a]{0,60}") {
            let cursor = Cursor::at("postgres", &text);
            if let Some(place) = Place::read("postgres", &cursor) {
                prop_assert_eq!(place.cursor("postgres"), cursor);
            }
        }

        #[test]
        fn any_place_is_read_back(
            life in proptest::collection::vec(any::<u64>(), 6),
            [xmin, xmax] in any::<[u64; 2]>(),
            running in proptest::collection::vec(any::<u64>(), 0..9),
        ) {
            let join = |numbers: Vec<u64>, by| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(by);
            let place = place(&join(life, "."), &format!("{xmin}:{xmax}:{}", join(running, ",")));
            prop_assert_eq!(Place::read("postgres", &place.cursor("postgres")), Some(place));
        }
    }

    #[test]
    fn a_long_snapshot_is_shortened() {
        let running: Vec<String> =
            (1_000_000_000_000_u64..1_000_000_000_400).map(|xid| xid.to_string()).collect();
        let long = place("1.2.3.4.5.6", &format!("1000000000000:1000000000401:{}", running.join(",")));
        let cursor = long.cursor("postgres");
        assert_eq!(cursor.as_str(), "postgres:1.2.3.4.5.6:1000000000000:1000000000000:");
        assert_eq!(Place::read("postgres", &cursor).unwrap().life, long.life);
    }
}
