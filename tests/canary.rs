//! No secret is told: everything that is logged, traced, measured or said as an error is searched for what was stored.
//!
//! A subscriber hears every target at TRACE, drivers and what they say to `log` included, and spans as they open and close. A
//! backend is one line.
#![cfg(all(
    feature = "file",
    feature = "memory",
    feature = "mongodb",
    feature = "postgres",
    feature = "redis"
))]

mod servers;
mod workload;

use std::{
    collections::BTreeSet,
    error::Error as _,
    fmt::Write as _,
    fs, io,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use base64::Engine;
use gateway_storage::{ConfigStore, Error, File, Memory, MongoDb, Postgres, Redis, Result, Storage};
use metrics_exporter_prometheus::PrometheusBuilder;
use mongodb::bson::doc;
use tracing_subscriber::fmt::format::FmtSpan;
use workload::{Errors, Words, stacked};

/// In every secret, twice: so that one that is cut off is found, too. What stands between has to be escaped in a URL.
const MARKS: [&str; 2] = ["kT9vQ2xLr7", "Zp4mWc8Yd1"];

fn secret(kind: &str) -> String {
    format!("{kind}-{}/ñ+{}", MARKS[0], MARKS[1])
}

/// What a mark looks like in other clothes.
fn clothes(mark: &str) -> Vec<(&'static str, String)> {
    let bytes = mark.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let joined = |form: &dyn Fn(&u8) -> String, between: &str| {
        bytes.iter().map(form).collect::<Vec<_>>().join(between)
    };
    let mut found = vec![
        ("raw", mark.to_owned()),
        ("hex", hex.to_uppercase()),
        ("hex", hex),
        ("a list of bytes", joined(&|byte| byte.to_string(), ", ")),
        ("a list of hex", joined(&|byte| format!("{byte:x}"), ", ")),
        ("URL-encoded", joined(&|byte| format!("%{byte:02X}"), "")),
        ("URL-encoded", joined(&|byte| format!("%{byte:02x}"), "")),
        ("escaped", joined(&|byte| format!("\\x{byte:02x}"), "")),
        ("escaped", joined(&|byte| format!("\\u{byte:04x}"), "")),
    ];
    for engine in [base64::engine::general_purpose::STANDARD, base64::engine::general_purpose::URL_SAFE] {
        for before in 0..3_usize {
            let coded = engine.encode([&vec![0; before], bytes].concat());
            // Only the letters that no neighbour has a part in.
            let (first, last) = ((before * 8).div_ceil(6), (before + bytes.len()) * 8 / 6);
            found.push(("base64", coded[first..last].to_owned()));
        }
    }
    found
}

/// Hears everything.
struct Listener {
    is_on: AtomicBool,
    bytes: AtomicUsize,
    targets: Mutex<BTreeSet<String>>,
    leaks: Mutex<Vec<String>>,
}

static LISTENER: Listener = Listener {
    is_on: AtomicBool::new(true),
    bytes: AtomicUsize::new(0),
    targets: Mutex::new(BTreeSet::new()),
    leaks: Mutex::new(Vec::new()),
};

impl Listener {
    fn hear(&self, text: &str) {
        if !self.is_on.load(Ordering::SeqCst) {
            return;
        }
        self.bytes.fetch_add(text.len(), Ordering::Relaxed);
        static CLOTHES: std::sync::LazyLock<Vec<(&str, String)>> =
            std::sync::LazyLock::new(|| MARKS.into_iter().flat_map(clothes).collect());
        for (form, mark) in &*CLOTHES {
            if text.contains(mark.as_str()) {
                self.leaks.lock().unwrap().push(format!("{form}: {text}"));
            }
        }
        // What comes by way of `log` names its target in a field.
        let said_by =
            |target: &&str| text.contains(&format!(" {target}")) || text.contains(&format!("\"{target}"));
        let heard = ["gateway_storage", "redis", "rustls", "tokio_postgres"].into_iter().filter(said_by);
        self.targets.lock().unwrap().extend(heard.map(str::to_owned));
    }

    fn leaks(&self) -> Vec<String> {
        std::mem::take(&mut self.leaks.lock().unwrap())
    }
}

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LISTENER.hear(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that an error says, and those behind it.
fn text_of(error: &Error) -> String {
    let mut text = format!("{error} {error:#} {error:?} {error:#?} {:?} {:?}", error.code(), error.kind());
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, " {cause} {cause:#} {cause:?} {cause:#?}").unwrap();
        source = cause.source();
    }
    text
}

/// Does what the backend can, under the full stack, and listens to the errors.
macro_rules! sing {
    ($url:expr, $backend:ty: $($part:ident)*) => {{
        let (words, mut errors) = (Words::new(secret), Errors::default());
        let opened = Storage::<$backend>::open($url).await.unwrap();
        LISTENER.hear(&format!("{opened:?} {:?}", opened.backend()));
        let on = stacked(opened);
        $(sing!(@ $part on words errors);)*
        LISTENER.hear(&format!("{on:?} {:?}", on.backend()));
        heard(&on, &words, errors).await
    }};
    (@ exports $on:ident $words:ident $errors:ident) => { workload::exports(&$on).await.unwrap() };
    (@ pool $on:ident $words:ident $errors:ident) => { workload::pool(&$on, &mut $errors).await.unwrap() };
    (@ $part:ident $on:ident $words:ident $errors:ident) => {
        workload::$part(&$on, &$words, &mut $errors).await.unwrap()
    };
}

async fn heard<B: ConfigStore>(on: &Storage<B>, words: &Words, mut errors: Errors) {
    LISTENER.hear(&serde_json::to_string(&on.stats().await.unwrap()).unwrap());
    workload::end(on, words, &mut errors).await.unwrap();
    assert!(errors.0.len() > 10);
    errors.0.iter().for_each(|error| LISTENER.hear(&text_of(error)));
}

fn refused<T>(result: Result<T>) {
    LISTENER.hear(&text_of(&result.err().expect("nobody is there")));
}

/// A server that asks for the password, and a role that has one.
async fn guarded_postgres(password: &str) -> (servers::postgres::Server, String) {
    let server = servers::postgres::Server::prepared(&[], |data| {
        let rules = "host all tester 127.0.0.1/32 trust\nhost all keeper 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
    });
    // What an administrator says on a connection of his own is not ours.
    LISTENER.is_on.store(false, Ordering::SeqCst);
    let (administrator, connection) =
        tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let role = format!("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '{password}'");
    administrator.batch_execute(&role).await.unwrap();
    drop(administrator);
    connection.await.unwrap().unwrap();
    LISTENER.is_on.store(true, Ordering::SeqCst);
    let url =
        format!("postgres://keeper:{}@127.0.0.1:{}/postgres?sslmode=prefer", encoded(password), server.port);
    (server, url)
}

/// A user who has the password.
fn guarded_mongodb(password: &str) -> String {
    LISTENER.is_on.store(false, Ordering::SeqCst);
    let set = servers::mongodb_set();
    let user = doc! { "createUser": "keeper", "pwd": password, "roles": ["readWriteAnyDatabase"] };
    set.members[set.primary()].ask("admin", user);
    LISTENER.is_on.store(true, Ordering::SeqCst);
    let url = set.url(&servers::database());
    format!("{}&authSource=admin", url.replace("://", &format!("://keeper:{}@", encoded(password))))
}

fn encoded(password: &str) -> String {
    password.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_told() {
    tracing_log::LogTracer::init().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(|| Lines)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let metrics = PrometheusBuilder::new().install_recorder().unwrap();

    // That it can fail.
    tracing::info!(leak = secret("x"), "said");
    assert_eq!(LISTENER.leaks().len(), 2);
    log::trace!("{:?}", secret("x").into_bytes());
    assert_eq!(LISTENER.leaks().len(), 2);
    for before in ["", "a", "ab"] {
        LISTENER.hear(&base64::engine::general_purpose::URL_SAFE.encode(before.to_owned() + &secret("")));
        assert!(!LISTENER.leaks().is_empty());
    }

    let password = secret("password");
    sing!("memory:", Memory: credentials configs plans usage cache transactions exports);

    let folder = tempfile::tempdir().unwrap();
    sing!(&*format!("file:{}/data", folder.path().display()), File: credentials configs plans usage exports);

    let redis = servers::redis::Server::start(&["--requirepass", &password]);
    let encoded = encoded(&password);
    let url = format!("redis://:{encoded}@127.0.0.1:{}", redis.port);
    sing!(&*url, Redis: credentials configs plans usage cache exports pool);
    refused(Storage::<Redis>::open(&*url.replace("redis://:", "redis://nobody:")).await);
    refused(Storage::<Redis>::open(&*format!("redis://:{encoded}@127.0.0.1:1")).await);
    refused(Storage::<Redis>::open(&*format!("{url}?{encoded}=1&db={encoded}")).await);

    let (_postgres, url) = guarded_postgres(&password).await;
    sing!(&*url, Postgres: credentials configs plans usage transactions exports pool);
    sing!(&*format!("{url}&pgbouncer=true&schema=other"), Postgres: credentials configs plans usage transactions exports pool);
    refused(Storage::<Postgres>::open(&*url.replace("keeper:", "keeper:x")).await);
    refused(Storage::<Postgres>::open(&*format!("postgres://keeper:{encoded}@127.0.0.1:1/{encoded}")).await);
    refused(Storage::<Postgres>::open(&*format!("{url}&{encoded}=1")).await);

    let url = guarded_mongodb(&password);
    sing!(&*url, MongoDb: credentials configs plans usage transactions exports pool);
    refused(Storage::<MongoDb>::open(&*url.replace("keeper:", "nobody:")).await);
    refused(Storage::<MongoDb>::open(&*format!("{url}&{encoded}=1")).await);

    LISTENER.hear(&metrics.render());
    let heard = LISTENER.bytes.load(Ordering::Relaxed);
    assert!(heard > 1_000_000, "{heard} bytes are not everything");
    let targets: Vec<_> = LISTENER.targets.lock().unwrap().iter().cloned().collect();
    for target in ["gateway_storage", "tokio_postgres"] {
        assert!(targets.iter().any(|heard| heard == target), "{target} was not heard, but {targets:?}");
    }
    let leaks = LISTENER.leaks();
    assert!(leaks.is_empty(), "{} leaks: {:#?}", leaks.len(), leaks.iter().take(5).collect::<Vec<_>>());
}
