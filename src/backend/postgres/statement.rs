//! All statements, their parameters and their replies.

use std::{error::Error as StdError, fmt};

use bytes::BytesMut;
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use super::error;
use crate::{
    Key, Result,
    codec::decode_key,
    model::{BEHIND_ALL, KeyRange, Revision},
};

macro_rules! statements {
    ($($name:ident = $text:literal;)*) => {
        /// A statement, by name. `{s}` in its text stands for the schema. For the other names in braces see
        /// `Texts::new`.
        #[derive(Clone, Copy)]
        pub(super) enum Sql { $($name),* }

        const TEXTS: &[&str] = &[$($text),*];
    };
}

statements! {
    Health = "SELECT current_setting('transaction_read_only') = 'on'";
    Server = "SELECT current_setting('server_version_num')::bigint, current_setting('server_encoding')";
    Migrations = "SELECT version::bigint, checksum FROM {s}.schema_migrations ORDER BY version";
    SchemaExists = "SELECT to_regnamespace($1) IS NOT NULL";
    RecordMigration = "INSERT INTO {s}.schema_migrations (version, checksum) VALUES ($1::bigint, $2)";
    Incarnation = "SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_bgwriter";
    TransactionStatus = "SELECT pg_xact_status($1::text::xid8), \
        (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_bgwriter)";
    Stats = "SELECT (SELECT count(*) FROM {s}.credentials), (SELECT count(*) FROM {s}.configs), \
        (SELECT count(DISTINCT key) FROM {s}.usage), \
        pg_total_relation_size('{s}.credentials'::regclass) + pg_total_relation_size('{s}.configs'::regclass) \
        + pg_total_relation_size('{s}.usage'::regclass) + pg_total_relation_size('{s}.plans'::regclass) \
        + pg_total_relation_size('{s}.plan_audit'::regclass) + pg_total_relation_size('{s}.leases'::regclass), \
        current_setting('server_version'), \
        current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'), \
        pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', \
        (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), \
        (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()), coalesce(inet_client_addr() <<= '127.0.0.0/8' OR inet_client_addr() = '::1', true), \
        (SELECT max(version)::bigint FROM {s}.schema_migrations), current_setting('max_connections')::bigint, \
        (SELECT sum(numbackends)::bigint FROM pg_stat_database), \
        (SELECT concat_ws(', ', \
        CASE WHEN quotes AND current_setting('log_statement') IN ('mod', 'all') THEN 'log_statement' END, \
        CASE WHEN quotes AND current_setting('log_min_duration_statement') <> '-1' \
        THEN 'log_min_duration_statement' END, \
        CASE WHEN quotes AND current_setting('log_min_duration_sample') <> '-1' \
        AND current_setting('log_statement_sample_rate')::float8 > 0 THEN 'log_min_duration_sample' END, \
        CASE WHEN quotes AND current_setting('log_transaction_sample_rate')::float8 > 0 \
        THEN 'log_transaction_sample_rate' END, \
        CASE WHEN current_setting('log_parameter_max_length_on_error') <> '0' \
        THEN 'log_parameter_max_length_on_error' END, \
        CASE WHEN coalesce(current_setting('auto_explain.log_min_duration', true), '-1') <> '-1' \
        AND (coalesce(current_setting('auto_explain.log_parameter_max_length', true), '0') <> '0' \
        OR current_setting('auto_explain.log_verbose', true) = 'on') THEN 'auto_explain.log_min_duration' END) \
        FROM (SELECT current_setting('log_parameter_max_length') <> '0' AS quotes) AS log \
        WHERE current_setting('log_min_messages') NOT IN ('fatal', 'panic'))";

    GetCredential = "SELECT value FROM {s}.credentials WHERE id = $1";
    SetCredential = "INSERT INTO {s}.credentials (id, value) VALUES ($1, $2) \
        ON CONFLICT (id) DO UPDATE SET value = excluded.value";
    DeleteCredential = "DELETE FROM {s}.credentials WHERE id = $1";
    ListCredentials = "SELECT id FROM {s}.credentials ORDER BY id";
    GetCredentials = "SELECT id, value FROM {s}.credentials WHERE id = ANY($1)";
    SetCredentials = "INSERT INTO {s}.credentials (id, value) SELECT * FROM unnest($1::text[], $2::json[]) \
        ON CONFLICT (id) DO UPDATE SET value = excluded.value";
    DeleteCredentials = "WITH locked AS MATERIALIZED \
        (SELECT id FROM {s}.credentials WHERE id = ANY($1) ORDER BY id FOR UPDATE) \
        DELETE FROM {s}.credentials USING locked WHERE credentials.id = locked.id RETURNING credentials.id";
    SetCredentialIf = "UPDATE {s}.credentials AS stored SET value = $2 WHERE id = $1 AND {revision} = $3";
    CreateCredential = "INSERT INTO {s}.credentials (id, value) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING";
    // The lock makes the newest row the one that is compared.
    DeleteCredentialIf = "WITH found AS MATERIALIZED \
        (SELECT id, {revision} = $2 AS holds FROM {s}.credentials AS stored WHERE id = $1 FOR UPDATE), \
        deleted AS (DELETE FROM {s}.credentials USING found WHERE credentials.id = found.id AND holds RETURNING 1) \
        SELECT EXISTS (SELECT FROM deleted) FROM found";
    // The keys from $1 without $2 until $3. A page is limited in bytes, too: `before` is the size of the rows
    // before this one.
    PageCredentials = "SELECT id, value FROM (SELECT id, value, \
        sum(octet_length(value::text)) OVER (ORDER BY id) - octet_length(value::text) AS before \
        FROM (SELECT id, value FROM {s}.credentials WHERE id >= $1 AND id <> $2 AND id < $3 \
        ORDER BY id LIMIT $4) AS page) AS sized WHERE before < $5 ORDER BY id";

    GetConfig = "SELECT value FROM {s}.configs WHERE key = $1";
    SetConfig = "INSERT INTO {s}.configs (key, value) VALUES ($1, $2) \
        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    DeleteConfig = "DELETE FROM {s}.configs WHERE key = $1";
    GetConfigs = "SELECT key, value FROM {s}.configs WHERE key = ANY($1)";
    ListConfigs = "SELECT key, value FROM {s}.configs ORDER BY key";
    SetConfigs = "INSERT INTO {s}.configs (key, value) SELECT * FROM unnest($1::text[], $2::json[]) \
        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    SetConfigIf = "UPDATE {s}.configs AS stored SET value = $2 WHERE key = $1 AND {revision} = $3";
    CreateConfig = "INSERT INTO {s}.configs (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
    DeleteConfigIf = "WITH found AS MATERIALIZED \
        (SELECT key, {revision} = $2 AS holds FROM {s}.configs AS stored WHERE key = $1 FOR UPDATE), \
        deleted AS (DELETE FROM {s}.configs USING found WHERE configs.key = found.key AND holds RETURNING 1) \
        SELECT EXISTS (SELECT FROM deleted) FROM found";
    PageConfigs = "SELECT key, value FROM (SELECT key, value, \
        sum(octet_length(value::text)) OVER (ORDER BY key) - octet_length(value::text) AS before \
        FROM (SELECT key, value FROM {s}.configs WHERE key >= $1 AND key <> $2 AND key < $3 \
        ORDER BY key LIMIT $4) AS page) AS sized WHERE before < $5 ORDER BY key";

    Increment = "INSERT INTO {s}.usage AS counter (key, field, count) VALUES ($1, $2, $3) \
        ON CONFLICT (key, field) DO UPDATE SET count = counter.count + excluded.count RETURNING count";
    IncrementMany = "INSERT INTO {s}.usage AS counter (key, field, count) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
        ON CONFLICT (key, field) DO UPDATE SET count = counter.count + excluded.count RETURNING key, field, count";
    // A refused increment writes nothing and waits for no lock: it is refused by the total in the snapshot.
    // The server compares the newest row, too. If that one is over the limit, `counted` has no row.
    IncrementWithin = "WITH found AS MATERIALIZED (SELECT count FROM {s}.usage WHERE key = $1 AND field = $2), \
        made AS (INSERT INTO {s}.usage AS counter (key, field, count) \
        SELECT $1, $2, $3::bigint WHERE $3::bigint <= $4::bigint AND NOT EXISTS (SELECT FROM found) \
        ON CONFLICT (key, field) DO UPDATE SET count = counter.count + excluded.count \
        WHERE counter.count::numeric + $3::bigint <= $4::bigint RETURNING count), \
        counted AS (UPDATE {s}.usage AS counter SET count = count + $3::bigint \
        WHERE key = $1 AND field = $2 AND count::numeric + $3::bigint <= $4::bigint RETURNING count) \
        SELECT (SELECT count FROM made UNION ALL SELECT count FROM counted), (SELECT count FROM found)";
    GetUsage = "SELECT field, count FROM {s}.usage WHERE key = $1";
    GetCounter = "SELECT count FROM {s}.usage WHERE key = $1 AND field = $2";
    GetUsages = "SELECT key, field, count FROM {s}.usage WHERE key = ANY($1)";
    ResetUsage = "WITH locked AS MATERIALIZED \
        (SELECT key, field FROM {s}.usage WHERE key = $1 ORDER BY field FOR UPDATE) \
        DELETE FROM {s}.usage USING locked WHERE usage.key = locked.key AND usage.field = locked.field";
    // The counters behind ($1, $2) of the next $4 records before $3, or of fewer with a thousand counters. No
    // record is cut: all counters of the last one are returned.
    PageRecords = "WITH first AS MATERIALIZED (SELECT key FROM {s}.usage \
        WHERE (key, field) > ($1, $2) AND key < $3 ORDER BY key, field LIMIT 1000), \
        last AS MATERIALIZED (SELECT max(key) AS key FROM \
        (SELECT key, dense_rank() OVER (ORDER BY key) AS place FROM first) AS ranked WHERE place <= $4) \
        SELECT key, field, count FROM {s}.usage \
        WHERE (key, field) > ($1, $2) AND key <= (SELECT key FROM last) ORDER BY key, field";
    // Deletes the next records, ten thousand counters or more. Returns their number, and the last key if
    // there may be more records.
    ResetRecords = "WITH first AS MATERIALIZED (SELECT key FROM {s}.usage \
        WHERE (key, field) > ($1, $2) AND key < $3 ORDER BY key, field LIMIT 10000), \
        last AS MATERIALIZED (SELECT max(key) AS key FROM first), locked AS MATERIALIZED \
        (SELECT key, field FROM {s}.usage WHERE (key, field) > ($1, $2) AND key <= (SELECT key FROM last) \
        ORDER BY key, field FOR UPDATE), \
        deleted AS (DELETE FROM {s}.usage USING locked WHERE (usage.key, usage.field) > ($1, $2) \
        AND usage.key <= (SELECT key FROM last) AND usage.key = locked.key AND usage.field = locked.field \
        RETURNING usage.key) \
        SELECT (SELECT count(DISTINCT key) FROM deleted), (SELECT max(key) FROM first HAVING count(*) = 10000)";
    ListUsage = "SELECT key, field, count FROM {s}.usage ORDER BY key, field";
    SetCounters = "INSERT INTO {s}.usage (key, field, count) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
        ON CONFLICT (key, field) DO UPDATE SET count = excluded.count";
    PageUsage = "SELECT key, field, count FROM {s}.usage WHERE (key, field) > ($1, $2) \
        ORDER BY key, field LIMIT 1000";

    // The transaction of a plan holds a lock on the table of plans, so one is applied at a time. Config
    // values are locked in the order of their keys. A missing one that is created concurrently is a conflict.
    PlanToApply = "WITH found AS MATERIALIZED \
        (SELECT key, value FROM {s}.configs WHERE key = ANY($2) ORDER BY key FOR UPDATE) \
        SELECT payload, mutations, stage, rolled_back IS NOT NULL, changes, NULL::text, NULL::json \
        FROM {s}.plans WHERE key = $1 AND expires > clock_timestamp() \
        UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, key, value FROM found";
    PlanToRollBack = "WITH record AS MATERIALIZED \
        (SELECT * FROM {s}.plans WHERE key = $1 AND expires > clock_timestamp()), found AS MATERIALIZED \
        (SELECT key, value FROM {s}.configs WHERE key = ANY(ARRAY(SELECT unnest(keys) FROM record)) \
        ORDER BY key FOR UPDATE) \
        SELECT payload, mutations, stage, rolled_back IS NOT NULL, changes, NULL::text, NULL::json FROM record \
        UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, key, value FROM found";
    FinishPlan = "WITH deleted AS (DELETE FROM {s}.configs WHERE key = ANY($2)), \
        stored AS (INSERT INTO {s}.configs (key, value) SELECT * FROM unnest($3::text[], $4::json[]) \
        ON CONFLICT (key) DO UPDATE SET value = excluded.value), \
        recorded AS (INSERT INTO {s}.plans (key, payload, mutations, stage, applied, expires, keys, changes) \
        SELECT $1, $11, $10, nullif($7, ''), now, now + $13::bigint * interval '1 millisecond', $2::text[] || $3::text[], \
        $14::json FROM clock_timestamp() AS now WHERE $5 = 'apply' AND $6 = 'committed' \
        ON CONFLICT (key) DO UPDATE SET (payload, mutations, stage, applied, expires, rolled_back, keys, changes) = \
        (excluded.payload, excluded.mutations, excluded.stage, excluded.applied, excluded.expires, NULL, excluded.keys, \
        excluded.changes)), \
        rolled_back AS (UPDATE {s}.plans SET rolled_back = clock_timestamp() \
        WHERE key = $1 AND $5 <> 'apply' AND $6 = 'committed'), \
        forgotten AS (DELETE FROM {s}.plans WHERE expires <= clock_timestamp() AND key <> $1), \
        trimmed AS (DELETE FROM {s}.plan_audit WHERE number <= (SELECT max(number) FROM {s}.plan_audit) - 9999) \
        INSERT INTO {s}.plan_audit (key, action, status, stage, source, finished, micros, mutations, payload, error) \
        VALUES ($1, $5, $6, nullif($7, ''), nullif($8, ''), clock_timestamp(), $9, $10, nullif($11, ''), nullif($12, ''))";
    PageAudit = "SELECT number, key, action, status, stage, source, \
        floor(extract(epoch FROM finished) * 1000)::bigint, micros, mutations, payload, error \
        FROM {s}.plan_audit WHERE number < $1 ORDER BY number DESC LIMIT 500";

    // A refused claim writes nothing, waits for no lock and has a row: `other`. Without any row, a lease was
    // claimed since the snapshot. The clock is read after waiting for a lock, so it is not `now()`.
    // The claim ends before ended leases are locked, and those that are locked are left, so claims do not
    // deadlock.
    ClaimLease = "WITH other AS MATERIALIZED \
        (SELECT {left} AS left FROM {s}.leases AS stored \
        WHERE name = $1 AND ends > clock_timestamp() AND holder IS DISTINCT FROM $2), \
        claimed AS (INSERT INTO {s}.leases AS stored (name, holder, number, ends) \
        SELECT $1, $2, {micros}, clock_timestamp() + $3::bigint * interval '1 millisecond' WHERE NOT EXISTS (SELECT FROM other) \
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, number = \
        CASE WHEN stored.holder = excluded.holder AND stored.ends > clock_timestamp() THEN stored.number \
        ELSE greatest(stored.number + 1, {micros}) END, ends = clock_timestamp() + $3::bigint * interval '1 millisecond' \
        WHERE stored.holder = excluded.holder OR stored.ends <= clock_timestamp() RETURNING number), \
        ended AS MATERIALIZED (SELECT name FROM {s}.leases WHERE ends < clock_timestamp() - interval '1 hour' \
        AND name <> $1 AND EXISTS (SELECT FROM claimed) LIMIT $4 FOR UPDATE SKIP LOCKED), \
        forgotten AS (DELETE FROM {s}.leases USING ended WHERE leases.name = ended.name) \
        SELECT number, NULL::float8 FROM claimed UNION ALL SELECT NULL, other.left FROM other";
    RenewLease = "UPDATE {s}.leases SET ends = clock_timestamp() + $4::bigint * interval '1 millisecond' \
        WHERE name = $1 AND holder = $2 AND number = $3 AND ends > clock_timestamp()";
    ReleaseLease = "UPDATE {s}.leases SET holder = NULL, ends = clock_timestamp() + $4::bigint * interval '1 millisecond' \
        WHERE name = $1 AND holder = $2 AND number = $3";
    ListLeases = "SELECT name, holder, number, {left} FROM {s}.leases AS stored WHERE ends > clock_timestamp() ORDER BY name";

    // Watches: see `changes.rs`. The sequences are read and set outside of snapshots.
    //
    // First the state: the seconds that the store stays watched, which a look extends, its life, the
    // snapshot, whether this is a standby, and whether all changes since the snapshot $1 are still there.
    // Then the changes that became visible since $1. The time is read before the number of the watched
    // period, because a period begins with its number.
    Look = "WITH clock AS MATERIALIZED (SELECT coalesce(pg_sequence_last_value('{s}.watch_until'::regclass), 0)::float8 \
        - extract(epoch FROM clock_timestamp())::float8 AS remaining), \
        changed AS MATERIALIZED (SELECT DISTINCT kind, key FROM {s}.changes \
        WHERE xid >= pg_snapshot_xmin(nullif($1, '')::pg_snapshot) \
        AND NOT pg_visible_in_snapshot(xid, nullif($1, '')::pg_snapshot) LIMIT $2) \
        SELECT remaining, CASE WHEN remaining BETWEEN 60 AND 540 THEN setval('{s}.watch_until', {until}) END, \
        concat_ws('.', floor(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
        (SELECT oid FROM pg_database WHERE datname = current_database()), to_regclass('{s}.changes')::oid, \
        to_regclass('{s}.credentials')::oid, to_regclass('{s}.configs')::oid, \
        pg_sequence_last_value('{s}.watch_epoch'::regclass)), \
        pg_current_snapshot()::text, pg_is_in_recovery(), \
        coalesce((SELECT pruned FROM {s}.watch) < pg_snapshot_xmin(nullif($1, '')::pg_snapshot), false), \
        NULL::bigint, NULL::text FROM clock \
        UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, kind::bigint, key FROM changed";
    WatchTriggers = "SELECT relname::text, tgname::text, tgenabled IN ('O', 'A') FROM pg_trigger \
        JOIN pg_class ON pg_class.oid = tgrelid WHERE NOT tgisinternal AND tgname LIKE 'watch\\_%' \
        AND tgrelid IN (to_regclass('{s}.credentials'), to_regclass('{s}.configs'))";
    // Rows of another server, which a restored dump has, are not of this server's transactions.
    ForgetForeign = "WITH forgotten AS (DELETE FROM {s}.changes WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())) \
        UPDATE {s}.watch SET pruned = '0', mark = '0' \
        WHERE greatest(pruned, mark) > pg_snapshot_xmin(pg_current_snapshot())";
    WatchState = "SELECT version::bigint, settled, coalesce(pg_sequence_last_value('{s}.watch_epoch'::regclass), 0), \
        coalesce(pg_sequence_last_value('{s}.watch_until'::regclass), 0) > {until} - 540 FROM {s}.watch";
    WatchEpoch = "SELECT nextval('{s}.watch_epoch')";
    WatchUntil = "SELECT setval('{s}.watch_until', {until})";
    WatchSettled = "UPDATE {s}.watch SET settled = $1";
    // The transactions that write to the tables, or have.
    Writers = "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
        AND relation IN (to_regclass('{s}.credentials'), to_regclass('{s}.configs')) \
        AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
        AND pid IS DISTINCT FROM pg_backend_pid()";
    // Deletes up to 20,000 old rows, or a whole transaction's: not the newest 100,000, and none that a
    // snapshot of the last minute may not show. Returns whether there are more.
    Prune = "WITH held AS MATERIALIZED (SELECT mark FROM {s}.watch \
        WHERE marked <= clock_timestamp() - interval '1 minute' FOR UPDATE SKIP LOCKED), \
        kept AS MATERIALIZED (SELECT xid FROM {s}.changes WHERE EXISTS (SELECT FROM held) \
        ORDER BY xid DESC OFFSET 100000 LIMIT 1), \
        part AS MATERIALIZED (SELECT xid FROM {s}.changes WHERE EXISTS (SELECT FROM kept) \
        ORDER BY xid OFFSET 20000 LIMIT 1), \
        last AS MATERIALIZED (SELECT changes.xid FROM {s}.changes, held, kept, part \
        WHERE changes.xid < mark AND changes.xid < kept.xid AND changes.xid <= part.xid ORDER BY changes.xid DESC LIMIT 1), \
        deleted AS (DELETE FROM {s}.changes USING last WHERE changes.xid <= last.xid), \
        more AS MATERIALIZED (SELECT EXISTS (SELECT FROM last, part WHERE last.xid = part.xid) AS is_more), \
        noted AS (UPDATE {s}.watch SET pruned = greatest(pruned, (SELECT xid FROM last)), \
        mark = CASE WHEN is_more THEN watch.mark ELSE pg_snapshot_xmin(pg_current_snapshot()) END, \
        marked = CASE WHEN is_more THEN marked ELSE clock_timestamp() END FROM held, more) \
        SELECT is_more FROM more";
    IsWatched = "SELECT {watched}";
    // The commit of a notification takes a lock, so it does not wait for the disk or a standby.
    Ring = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, ''), {watched}";

    // In a transaction a write returns the transaction's number, by which a lost commit is looked up. The
    // update goes before the insert: only an update conflicts with the concurrent deletion of a record that
    // is in the snapshot.
    ReplaceCredential = "WITH replaced AS (UPDATE {s}.credentials SET value = $2 WHERE id = $1 RETURNING id), \
        made AS (INSERT INTO {s}.credentials (id, value) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM replaced) \
        ON CONFLICT (id) DO UPDATE SET value = excluded.value) SELECT pg_current_xact_id()::text";
    RemoveCredential = "DELETE FROM {s}.credentials WHERE id = $1 RETURNING pg_current_xact_id()::text";
    ReplaceConfig = "WITH replaced AS (UPDATE {s}.configs SET value = $2 WHERE key = $1 RETURNING key), \
        made AS (INSERT INTO {s}.configs (key, value) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM replaced) \
        ON CONFLICT (key) DO UPDATE SET value = excluded.value) SELECT pg_current_xact_id()::text";
    RemoveConfig = "DELETE FROM {s}.configs WHERE key = $1 RETURNING pg_current_xact_id()::text";

    // The tables of the Go program.
    LegacyColumns = "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = $1";
    FetchLegacyCredentials = "FETCH 250 FROM legacy_credentials";
    FetchLegacyStates = "FETCH 250 FROM legacy_credential_states";
    FetchLegacyConfigs = "FETCH 250 FROM legacy_configs";
    FetchLegacyUsage = "FETCH 1000 FROM legacy_usage_stats";
}

/// The number of statements, and so the most that a connection has prepared.
pub(super) const STATEMENTS: usize = TEXTS.len();

/// The [`Revision`](crate::model::Revision) of a stored row, as the server computes it.
const REVISION: &str = "substring(sha256(convert_to(stored.value::text, 'UTF8')) FROM 1 FOR 20)";

/// The seconds until a stored lease ends. Also defined for `infinity`.
const LEFT: &str = "extract(epoch FROM stored.ends)::float8 - extract(epoch FROM clock_timestamp())::float8";

/// The server's clock in microseconds since 1970.
const MICROS: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// The second until which a store is watched if nothing extends it.
const UNTIL: &str = "(floor(extract(epoch FROM clock_timestamp())) + 600)::bigint";

/// Whether a store is watched. Also defined if nothing has ever watched it.
const WATCHED: &str = "coalesce(pg_sequence_last_value(to_regclass('{s}.watch_until')) \
    > extract(epoch FROM clock_timestamp()), false)";

/// The SQL of all statements for one schema.
pub(super) struct Texts([String; STATEMENTS]);

impl Texts {
    pub(super) fn new(quoted_schema: &str) -> Self {
        // Inside a literal, quotes are doubled.
        let literal = format!("'{}.", quoted_schema.replace('\'', "''"));
        let of = |text: &str| {
            let text =
                text.replace("{revision}", REVISION).replace("{left}", LEFT).replace("{micros}", MICROS);
            let text = text.replace("{until}", UNTIL).replace("{watched}", WATCHED);
            text.replace("'{s}.", &literal).replace("{s}", quoted_schema)
        };
        Self(std::array::from_fn(|at| of(TEXTS[at])))
    }

    pub(super) fn of(&self, statement: Sql) -> &str {
        &self.0[statement as usize]
    }
}

/// A parameter of a statement. The driver logs parameters by their `Debug`, so theirs is redacted.
pub(super) enum Parameter<'p> {
    Text(&'p str),
    Json(&'p [u8]),
    Number(i64),
    Revision(Revision),
    Texts(Vec<&'p str>),
    Jsons(Vec<Json<'p>>),
    Numbers(Vec<i64>),
}

/// JSON text that is sent to, or comes from, the server.
pub(super) struct Json<'j>(pub(super) &'j [u8]);

/// Where the counters of a range begin, and its end: see [`Sql::PageRecords`].
pub(super) fn counters_of(range: &KeyRange) -> [Parameter<'_>; 3] {
    // No field is empty, and all sort before the other text.
    let field = if range.has_first() { "" } else { BEHIND_ALL };
    [range.first(), field, range.end()].map(Parameter::Text)
}

impl Sql {
    /// Whether watches tell what it changes.
    pub(super) const fn is_watched(self) -> bool {
        use Sql::{
            CreateConfig, CreateCredential, DeleteConfig, DeleteConfigIf, DeleteCredential,
            DeleteCredentialIf, DeleteCredentials, SetConfig, SetConfigIf, SetConfigs, SetCredential,
            SetCredentialIf, SetCredentials,
        };
        matches!(
            self,
            CreateConfig
                | CreateCredential
                | DeleteConfig
                | DeleteConfigIf
                | DeleteCredential
                | DeleteCredentialIf
                | DeleteCredentials
                | SetConfig
                | SetConfigIf
                | SetConfigs
                | SetCredential
                | SetCredentialIf
                | SetCredentials
        )
    }
}

impl Parameter<'_> {
    pub(super) const fn type_of(&self) -> Type {
        match self {
            Self::Text(_) => Type::TEXT,
            Self::Json(_) => Type::JSON,
            Self::Number(_) => Type::INT8,
            Self::Revision(_) => Type::BYTEA,
            Self::Texts(_) => Type::TEXT_ARRAY,
            Self::Jsons(_) => Type::JSON_ARRAY,
            Self::Numbers(_) => Type::INT8_ARRAY,
        }
    }
}

type ToSqlResult = Result<IsNull, Box<dyn StdError + Sync + Send>>;

impl ToSql for Parameter<'_> {
    fn to_sql(&self, of: &Type, out: &mut BytesMut) -> ToSqlResult {
        match self {
            Self::Text(text) => text.to_sql(of, out),
            Self::Json(text) => Json(text).to_sql(of, out),
            Self::Number(number) => number.to_sql(of, out),
            Self::Revision(revision) => revision.as_bytes().as_slice().to_sql(of, out),
            Self::Texts(texts) => texts.to_sql(of, out),
            Self::Jsons(texts) => texts.to_sql(of, out),
            Self::Numbers(numbers) => numbers.to_sql(of, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl fmt::Debug for Parameter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

impl ToSql for Json<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> ToSqlResult {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }

    to_sql_checked!();
}

impl<'j> FromSql<'j> for Json<'j> {
    fn from_sql(_: &Type, text: &'j [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(text))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }
}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

/// The reply to a statement.
pub(super) struct Reply {
    pub(super) rows: Vec<Row>,
    /// The number of rows that it changed or read.
    pub(super) count: u64,
}

impl Reply {
    pub(super) fn row(&self) -> Result<&Row> {
        self.rows.first().ok_or_else(error::unexpected_reply)
    }
}

/// Reads a column.
pub(super) fn column<'r, T: FromSql<'r>>(row: &'r Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|_| error::unexpected_reply())
}

/// Reads a column that holds a key.
pub(super) fn key(row: &Row, at: usize) -> Result<Key> {
    decode_key(column::<&str>(row, at)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_quoted_as_a_name_and_in_literals() {
        let texts = Texts::new("\"o'clock\"");
        assert!(texts.of(Sql::GetConfig).contains("FROM \"o'clock\".configs"));
        assert!(texts.of(Sql::Stats).contains("('\"o''clock\".usage'::regclass)"));
    }

    #[test]
    fn the_audit_keeps_the_documented_number_of_entries() {
        let kept =
            format!("(SELECT max(number) FROM s.plan_audit) - {})", crate::plan::MAX_AUDIT_ENTRIES - 1);
        assert!(Texts::new("s").of(Sql::FinishPlan).contains(&kept));
    }

    #[test]
    fn parameters_are_redacted() {
        let parameters = [
            Parameter::Text("secret"),
            Parameter::Json(b"secret"),
            Parameter::Texts(vec!["secret"]),
            Parameter::Jsons(vec![Json(b"secret")]),
        ];
        assert_eq!(format!("{parameters:?} {:?}", Json(b"secret")), "[..., ..., ..., ...] ...");
    }
}
