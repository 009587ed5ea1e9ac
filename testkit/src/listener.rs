//! Captures logs, spans and metrics, at TRACE and from every target, and searches them for the canary words.

use std::{
    collections::BTreeSet,
    error::Error as _,
    fmt::Write as _,
    io,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use aho_corasick::AhoCorasick;
use base64::Engine;
use gateway_storage::Error;
pub use gateway_storage::conformance::CANARY;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::fmt::format::FmtSpan;

/// The forms in which a word may appear in a text: raw, hex, URL-encoded, base64 and others.
fn encodings(word: &str) -> Vec<(&'static str, String)> {
    let bytes = word.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let joined = |form: &dyn Fn(&u8) -> String, between: &str| {
        bytes.iter().map(form).collect::<Vec<_>>().join(between)
    };
    let mut found = vec![
        ("raw", word.to_owned()),
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
            // Only the characters that do not depend on the bytes before and after the word.
            let (first, last) = ((before * 8).div_ceil(6), (before + bytes.len()) * 8 / 6);
            found.push(("base64", coded[first..last].to_owned()));
        }
    }
    found
}

/// What a found word means.
enum Meaning {
    /// A canary word in this form.
    Leak(&'static str),
    Target(&'static str),
}

/// All words, which are sought in one pass, and their meanings.
struct Sought {
    words: AhoCorasick,
    meanings: Vec<Meaning>,
}

static SOUGHT: LazyLock<Sought> = LazyLock::new(|| {
    let mut words: Vec<(String, Meaning)> =
        CANARY.into_iter().flat_map(encodings).map(|(form, word)| (word, Meaning::Leak(form))).collect();
    for target in ["gateway_storage", "redis", "rustls", "tokio_postgres"] {
        // A record from `log` names its target in a field.
        words.extend([" ", "\""].map(|before| (format!("{before}{target}"), Meaning::Target(target))));
    }
    let (words, meanings): (Vec<_>, _) = words.into_iter().unzip();
    Sought { words: AhoCorasick::new(words).unwrap(), meanings }
});

/// Searches all captured texts for the canary words.
pub struct Listener {
    /// Whether it searches at all.
    pub is_enabled: AtomicBool,
    /// How many bytes it has searched.
    pub bytes: AtomicUsize,
    /// The targets of the captured events and spans.
    pub targets: Mutex<BTreeSet<String>>,
    leaks: Mutex<Vec<String>>,
}

/// The only listener, because the subscriber of a process is global.
pub static LISTENER: Listener = Listener {
    is_enabled: AtomicBool::new(true),
    bytes: AtomicUsize::new(0),
    targets: Mutex::new(BTreeSet::new()),
    leaks: Mutex::new(Vec::new()),
};

impl Listener {
    /// Searches a text, and keeps it if it contains a canary word.
    pub fn search(&self, text: &str) {
        if !self.is_enabled.load(Ordering::SeqCst) {
            return;
        }
        self.bytes.fetch_add(text.len(), Ordering::Relaxed);
        for found in SOUGHT.words.find_overlapping_iter(text) {
            match &SOUGHT.meanings[found.pattern()] {
                Meaning::Leak(form) => self.leaks.lock().unwrap().push(format!("{form}: {text}")),
                Meaning::Target(target) => {
                    let mut targets = self.targets.lock().unwrap();
                    if !targets.contains(*target) {
                        targets.insert((*target).to_owned());
                    }
                }
            }
        }
    }

    /// Takes the texts with canary words.
    pub fn leaks(&self) -> Vec<String> {
        std::mem::take(&mut self.leaks.lock().unwrap())
    }
}

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LISTENER.search(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every text of an error and of its sources.
pub fn text_of(error: &Error) -> String {
    let mut text = format!("{error} {error:#} {error:?} {error:#?} {:?} {:?}", error.code(), error.kind());
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, " {cause} {cause:#} {cause:?} {cause:#?}").unwrap();
        source = cause.source();
    }
    text
}

/// Captures everything until the process ends: also drivers, `log` records, and spans as they open and close.
pub fn install() -> &'static PrometheusHandle {
    static METRICS: LazyLock<PrometheusHandle> = LazyLock::new(|| {
        tracing_log::LogTracer::init().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(|| Lines)
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        PrometheusBuilder::new().install_recorder().unwrap()
    });
    &METRICS
}

/// Panics if a canary word was captured.
pub fn assert_no_leaks() {
    LISTENER.search(&install().render());
    let leaks = LISTENER.leaks();
    assert!(leaks.is_empty(), "{} leaks: {:#?}", leaks.len(), leaks.iter().take(5).collect::<Vec<_>>());
}
