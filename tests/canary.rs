//! No secret leaks: logs, spans, metrics and errors are searched for stored keys, values and passwords.
//!
//! A subscriber captures every target at TRACE, including drivers, their `log` records, and spans as they
//! open and close. One line per backend.
#![cfg(all(feature = "conformance", feature = "full"))]

use std::{fs, sync::atomic::Ordering};

use base64::Engine;
use bb8_postgres::{PostgresConnectionManager, bb8::ManageConnection};
use gateway_storage::{ConfigStore, ErrorKind, File, Git, Memory, MongoDb, Postgres, Redis, Result, Storage};
use mongodb::bson::doc;
use testkit::{
    listener::{CANARY, LISTENER, assert_no_leaks, install, text_of},
    servers,
    workload::{self, Errors, Words, stacked},
};

/// Both canary words, so that a truncated text still contains one, joined by text that a URL must escape.
fn secret(kind: &str) -> String {
    format!("{kind}-{}/ñ+{}", CANARY[0], CANARY[1])
}

/// Runs the backend's part of the workload under the full stack, and searches its errors.
macro_rules! exercise {
    ($url:expr, $backend:ty: $($part:ident)*) => {{
        let (words, mut errors) = (Words::new(secret), Errors::default());
        let opened = Storage::<$backend>::open($url).await.unwrap();
        LISTENER.search(&format!("{opened:?} {:?}", opened.backend()));
        let on = stacked(opened);
        $(exercise!(@ $part on words errors);)*
        LISTENER.search(&format!("{on:?} {:?}", on.backend()));
        finish(&on, &words, errors).await
    }};
    (@ exports $on:ident $words:ident $errors:ident) => { workload::exports(&$on).await.unwrap() };
    (@ pool $on:ident $words:ident $errors:ident) => { workload::pool(&$on, &mut $errors).await.unwrap() };
    (@ $part:ident $on:ident $words:ident $errors:ident) => {
        workload::$part(&$on, &$words, &mut $errors).await.unwrap()
    };
}

async fn finish<B: ConfigStore>(on: &Storage<B>, words: &Words, mut errors: Errors) {
    LISTENER.search(&serde_json::to_string(&on.stats().await.unwrap()).unwrap());
    workload::end(on, words, &mut errors).await.unwrap();
    assert!(errors.0.len() > 10);
    errors.0.iter().for_each(|error| LISTENER.search(&text_of(error)));
}

fn refused<T>(result: Result<T>) {
    LISTENER.search(&text_of(&result.err().expect("opening the store fails")));
}

/// A server that requires a password, and the URL of a role that has one.
async fn guarded_postgres(password: &str) -> (servers::postgres::Server, String) {
    let server = servers::postgres::Server::prepared(&[], |data| {
        let rules = "host all tester 127.0.0.1/32 trust\nhost all keeper 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
    });
    // The administrator's own connection logs the password; that is not the library's leak.
    LISTENER.is_enabled.store(false, Ordering::SeqCst);
    let (administrator, connection) =
        tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let role = format!("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{password}'");
    administrator.batch_execute(&role).await.unwrap();
    drop(administrator);
    connection.await.unwrap().unwrap();
    LISTENER.is_enabled.store(true, Ordering::SeqCst);
    let url =
        format!("postgres://keeper:{}@127.0.0.1:{}/postgres?sslmode=prefer", encoded(password), server.port);
    (server, url)
}

/// Triggers that raise each change of a record as a NOTICE, a WARNING and an INFO.
async fn add_triggers(server: &servers::postgres::Server, schema: &str) {
    let (administrator, connection) =
        tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let raise = format!(
        "CREATE FUNCTION {schema}.raise() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE NOTICE '%', coalesce(NEW, OLD); RAISE WARNING '%', coalesce(NEW, OLD); \
         RAISE INFO '%', coalesce(NEW, OLD); RETURN NULL; END $$"
    );
    administrator.batch_execute(&raise).await.unwrap();
    for table in ["credentials", "configs", "usage", "plans", "plan_audit", "leases", "schema_migrations"] {
        let trigger = format!(
            "CREATE TRIGGER raise AFTER INSERT OR UPDATE OR DELETE ON {schema}.{table} \
             FOR EACH ROW EXECUTE FUNCTION {schema}.raise()"
        );
        administrator.batch_execute(&trigger).await.unwrap();
    }
}

/// The severities of notices that a connection of bb8-postgres logs, in a session with this setting.
async fn logged_by_bb8_postgres(
    server: &servers::postgres::Server,
    client_min_messages: &str,
) -> Vec<&'static str> {
    let mut config: tokio_postgres::Config = server.url().parse().unwrap();
    config.options(format!("-c client_min_messages={client_min_messages}"));
    let manager = PostgresConnectionManager::new(config, tokio_postgres::NoTls);
    let client = manager.connect().await.unwrap();
    // The driver logs the statement: only the row contains the whole word.
    let (start, end) = CANARY[0].split_at(CANARY[0].len() / 2);
    let row = format!("'shown', to_json(concat('{start}', '{end}'))");
    let change =
        format!("INSERT INTO gateway_storage.configs VALUES ({row}); DELETE FROM gateway_storage.configs");
    client.batch_execute(&change).await.unwrap();
    let leaks = LISTENER.leaks();
    let is_logged =
        |severity: &&str| leaks.iter().any(|leak| leak.contains(&format!(" {severity}: (shown,")));
    ["NOTICE", "WARNING", "INFO"].into_iter().filter(is_logged).collect()
}

/// The URL of a user with this password.
fn guarded_mongodb(password: &str) -> String {
    LISTENER.is_enabled.store(false, Ordering::SeqCst);
    let set = servers::mongodb_set();
    let user = doc! { "createUser": "keeper", "pwd": password, "roles": ["readWriteAnyDatabase"] };
    set.members[set.primary()].ask("admin", user);
    LISTENER.is_enabled.store(true, Ordering::SeqCst);
    let url = set.url(&servers::database());
    format!("{}&authSource=admin", url.replace("://", &format!("://keeper:{}@", encoded(password))))
}

fn encoded(password: &str) -> String {
    password.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_leaks() {
    install();

    // Leaks are found: in a field, as bytes, as base64.
    tracing::info!(leak = secret("x"), "leak");
    assert_eq!(LISTENER.leaks().len(), 2);
    log::trace!("{:?}", secret("x").into_bytes());
    assert_eq!(LISTENER.leaks().len(), 2);
    for before in ["", "a", "ab"] {
        LISTENER.search(&base64::engine::general_purpose::URL_SAFE.encode(before.to_owned() + &secret("")));
        assert!(!LISTENER.leaks().is_empty());
    }

    let password = secret("password");
    exercise!("memory:", Memory: credentials configs conditional leases refreshes plans usage cache transactions exports);

    let folder = tempfile::tempdir().unwrap();
    exercise!(&*format!("file:{}/data", folder.path().display()), File: credentials configs conditional leases refreshes plans usage exports);

    // The names of its files are keys, but its logs and errors contain none.
    exercise!(&*format!("git:{}/git", folder.path().display()), Git: credentials configs conditional history exports);
    let leaky = folder.path().join("leaky");
    for (before, after) in [
        ("https://keeper:", "@localhost/x"),
        ("http://keeper:", "@localhost/x"),
        ("http://localhost/x%3Fk=", ""),
    ] {
        let url = format!("git:{}?remote={before}{}{after}", leaky.display(), encoded(&password));
        let error = Storage::<Git>::open(&*url).await.expect_err("a remote must not contain a password");
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(error.to_string().contains("the remote's URL"), "{error}");
        LISTENER.search(&text_of(&error));
        assert!(!leaky.exists(), "a refused configuration creates no files");
    }

    let redis = servers::redis::Server::start(&["--requirepass", &password]);
    let encoded = encoded(&password);
    let url = format!("redis://:{encoded}@127.0.0.1:{}", redis.port);
    exercise!(&*url, Redis: credentials configs conditional leases refreshes plans usage cache exports pool);
    refused(Storage::<Redis>::open(&*url.replace("redis://:", "redis://unknown:")).await);
    refused(Storage::<Redis>::open(&*format!("redis://:{encoded}@127.0.0.1:1")).await);
    refused(Storage::<Redis>::open(&*format!("{url}?{encoded}=1&db={encoded}")).await);

    let (postgres, url) = guarded_postgres(&password).await;
    let pooler = servers::postgres::PgBouncer::before(&postgres);
    for (url, schema) in [
        (format!("{url}&schema=gateway_storage"), "gateway_storage"),
        (format!("{url}&pgbouncer=true&schema=other"), "other"),
        (format!("{}&schema=pooled", pooler.url()), "pooled"),
    ] {
        Storage::<Postgres>::open(&*url).await.unwrap().close().await.unwrap();
        add_triggers(&postgres, schema).await;
        exercise!(&*url, Postgres: credentials configs conditional leases refreshes plans usage transactions exports pool);
    }
    assert_no_leaks();
    // The server sends INFO in any case. This is why `Postgres` drives its own connections.
    assert_eq!(logged_by_bb8_postgres(&postgres, "notice").await, ["NOTICE", "WARNING", "INFO"]);
    assert_eq!(logged_by_bb8_postgres(&postgres, "error").await, ["INFO"]);
    refused(Storage::<Postgres>::open(&*url.replace("keeper:", "keeper:x")).await);
    refused(Storage::<Postgres>::open(&*format!("postgres://keeper:{encoded}@127.0.0.1:1/{encoded}")).await);
    refused(Storage::<Postgres>::open(&*format!("{url}&{encoded}=1")).await);

    let url = guarded_mongodb(&password);
    exercise!(&*url, MongoDb: credentials configs conditional leases refreshes plans usage transactions exports pool);
    refused(Storage::<MongoDb>::open(&*url.replace("keeper:", "unknown:")).await);
    refused(Storage::<MongoDb>::open(&*format!("{url}&{encoded}=1")).await);

    let captured = LISTENER.bytes.load(Ordering::Relaxed);
    assert!(captured > 1_000_000, "only {captured} bytes were captured");
    let targets: Vec<_> = LISTENER.targets.lock().unwrap().iter().cloned().collect();
    for target in ["gateway_storage", "tokio_postgres"] {
        assert!(targets.iter().any(|found| found == target), "{target} was not captured, only {targets:?}");
    }
    assert_no_leaks();
}
