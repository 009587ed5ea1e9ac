//! Two processes that write to one `File` store at once, while either or both are killed at random.
//!
//! Each call is reported before it begins, and with its outcome. What the store has after a kill is compared
//! with that: an acknowledged write is there, one that was not applied is not, and any other may be.
//!
//! `CRASH_ROUNDS=1000 cargo test --all-features --test crash two_processes` kills 1000 times. `CRASH_SEED`
//! repeats a run, as far as its kills go.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use futures_util::TryStreamExt;
use gateway_storage::{
    Credential, ErrorKind, File, Increment, Key, OptionalExt, Outcome, Result, Storage, list::ListOptions,
};
use serde_json::{Value, json};

use crate::{plans::rounds, runtime};

const TASKS: u64 = 6;
const BATCH: u64 = 5;
/// The steps of a process are higher than those of the processes before it.
const STEPS: u64 = 1_000_000;
const LONG: Duration = Duration::from_secs(20);

/// A number that all tasks of both processes raise.
const SHARED: &str = "shared";

async fn open(url: &str) -> Result<Storage<File>> {
    Storage::open(url).await
}

fn names(me: &str, task: u64) -> Vec<Key> {
    (0..BATCH).map(|n| Key::new(&format!("batch-{me}-{task}-{n}")).unwrap()).collect()
}

fn step_of(credential: &Credential) -> u64 {
    credential.get("step").and_then(Value::as_u64).expect("a stored step")
}

/// What `one` stores in this step. None: it deletes.
fn stored_in(step: u64) -> Option<u64> {
    (step % 4 != 3).then_some(step)
}

/// The process that is killed: it writes records of its own and shared ones, and watches those of the other.
pub(crate) fn writer(url: &str, me: &str, first_step: u64) {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(101);
    }));
    runtime().block_on(async {
        let storage = open(url).await.expect("the store opens beside the other process, and after a crash");
        let other = if me == "a" { "b" } else { "a" };
        let mut tasks: Vec<_> = (0..TASKS)
            .map(|task| tokio::spawn(write(storage.clone(), me.to_owned(), task, first_step)))
            .collect();
        tasks.push(tokio::spawn(watch(storage.clone(), other.to_owned())));
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Calls, and reports the call before and after it.
async fn reported<T>(kind: &str, task: u64, step: u64, call: impl Future<Output = Result<T>>) -> bool {
    let report = |word: &str| crate::report(&format!("{word} {kind} {task} {step}"));
    report("begin");
    let ended = call.await;
    report(match ended.as_ref().map_err(gateway_storage::Error::outcome) {
        Ok(_) => "ok",
        Err(Outcome::NotApplied) => "no",
        Err(Outcome::Unknown) => "unknown",
    });
    if let Err(error) = &ended {
        let is_beaten = kind == SHARED && error.kind() == ErrorKind::Conflict;
        assert!(is_beaten || error.kind() == ErrorKind::Timeout, "{kind}: {error:?}");
    }
    ended.is_ok()
}

async fn write(storage: Storage<File>, me: String, task: u64, first_step: u64) {
    let batch = names(&me, task);
    let one = Key::new(&format!("one-{me}-{task}")).unwrap();
    let (hot, own) = (Key::new("hot").unwrap(), Key::new(&format!("{me}-{task}")).unwrap());
    let mut random = fastrand::Rng::with_seed(first_step ^ task);
    for step in first_step.. {
        // Some calls have little time, so that some are withdrawn, and some end while they are written.
        let deadline = if random.u8(..6) == 0 { Duration::from_micros(random.u64(..4_000)) } else { LONG };
        let hurried = storage.with_deadline(deadline);
        let value = json!({ "step": step, "text": "x".repeat(random.usize(..900)) });

        let call = async {
            match stored_in(step) {
                Some(_) => hurried.set_credential(&one, value.clone()).await,
                None => hurried.delete_credential(&one).await.optional().map(drop),
            }
        };
        if reported("one", task, step, call).await {
            let found = storage.get_credential(&one).await.optional().unwrap();
            assert_eq!(found.as_ref().map(step_of), stored_in(step), "a process reads what it has written");
        }

        let increments = [Increment::new(&hot, &own, 1), Increment::new(&own, &hot, 1)];
        let call = async { hurried.increment_many(&increments).await?.complete() };
        reported("count", task, step, call).await;

        let credential = Credential::try_from(value).unwrap();
        let items: Vec<_> = batch.iter().map(|id| (id.clone(), credential.clone())).collect();
        let call = async { hurried.set_credentials(&items).await?.complete() };
        reported("batch", task, step, call).await;

        if random.u8(..4) == 0 {
            let raise = |mut fields: serde_json::Map<String, Value>| async move {
                let count = fields.get("n").and_then(Value::as_u64).unwrap_or_default();
                fields.insert("n".into(), json!(count + 1));
                Ok::<_, gateway_storage::Error>(fields)
            };
            reported(SHARED, task, step, hurried.update_credential(SHARED, raise)).await;
        }
    }
}

/// Reads what the other process writes: a batch is never torn, and nothing goes back.
async fn watch(storage: Storage<File>, other: String) {
    let mut latest: BTreeMap<u64, u64> = BTreeMap::new();
    let mut shared = 0;
    loop {
        for task in 0..TASKS {
            let ids = names(&other, task);
            let found = storage.get_credentials(&ids).await.unwrap();
            let steps: BTreeSet<u64> = found.values.values().map(step_of).collect();
            assert!(steps.len() <= 1, "the batch of task {task} is torn: {steps:?}");
            let Some(step) = steps.first().copied() else { continue };
            assert_eq!(found.values.len(), ids.len(), "the batch of task {task} is torn");
            let before = latest.insert(task, step).unwrap_or_default();
            assert!(step >= before, "task {task}: {step} after {before}");
            // One by one, from the cache: none is older than what was just read.
            for id in &ids {
                let now = step_of(&storage.get_credential(id).await.unwrap());
                assert!(now >= step, "task {task}: {now} after {step}");
            }
        }
        // What was there before the stream is in it once, in order.
        let of_other = ListOptions::default().with_prefix(format!("batch-{other}-"));
        let stream = storage.stream_credentials(of_other).map_ok(|(id, _)| id);
        let streamed: Vec<Key> = stream.try_collect().await.unwrap();
        assert!(streamed.is_sorted_by(|one, next| one < next));
        for id in latest.keys().flat_map(|task| names(&other, *task)) {
            assert!(streamed.contains(&id), "{id:?} is missing in a stream");
        }
        let now = raised(&storage).await;
        assert!(now >= shared, "{SHARED}: {now} after {shared}");
        shared = now;
        tokio::task::yield_now().await;
    }
}

async fn raised(storage: &Storage<File>) -> u64 {
    let found = storage.get_credential(SHARED).await.optional().unwrap();
    found.and_then(|found| found.get("n").and_then(Value::as_u64)).unwrap_or_default()
}

struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn start(url: &str, me: &str, first_step: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--beside", url, me, &first_step.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().try_for_each(|line| sender.send(line.unwrap())));
        Self { child, lines }
    }

    /// Returns once it has written, with what it has reported until then.
    fn begun(&self) -> String {
        self.lines.recv_timeout(LONG).expect("the process writes")
    }

    /// Kills it, and returns what it has reported.
    fn kill(mut self) -> impl Iterator<Item = String> {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.code().is_none(), "the process ended by itself: {status}");
        self.lines.into_iter()
    }
}

/// What a record may be: the steps that may have been the last, and what each of them stored.
#[derive(Default)]
struct Possible(Vec<(u64, Option<u64>)>);

impl Possible {
    fn read(&mut self, word: &str, step: u64, stored: Option<u64>) {
        match word {
            "begin" => self.0.push((step, stored)),
            "ok" => self.0 = vec![(step, stored)],
            "no" => self.0.retain(|(other, _)| *other != step),
            _ => {}
        }
    }

    #[track_caller]
    fn check(&mut self, what: &str, found: Option<u64>) {
        let is_possible = self.0.iter().any(|(_, stored)| *stored == found);
        assert!(is_possible, "{what}: {found:?} of {:?}", self.0);
        self.0 = vec![(0, found)];
    }
}

/// The bounds of a number that is only raised.
#[derive(Default)]
struct Raised {
    least: i64,
    /// The calls whose outcome is not known.
    open: BTreeSet<(String, u64, u64)>,
}

impl Raised {
    fn read(&mut self, word: &str, me: &str, task: u64, step: u64) {
        let call = (me.to_owned(), task, step);
        match word {
            "begin" => drop(self.open.insert(call)),
            "ok" => {
                self.open.remove(&call);
                self.least += 1;
            }
            "no" => drop(self.open.remove(&call)),
            _ => {}
        }
    }

    #[track_caller]
    fn check(&mut self, what: &str, found: i64) {
        let most = self.least + self.open.len() as i64;
        assert!((self.least..=most).contains(&found), "{what}: {} <= {found} <= {most}", self.least);
        *self = Self { least: found, open: BTreeSet::new() };
    }
}

/// What the store must have by what the processes reported.
struct Expected {
    /// By kind, process and task.
    records: BTreeMap<(String, String, u64), Possible>,
    counts: BTreeMap<(String, u64), Raised>,
    shared: Raised,
    words: BTreeMap<String, u64>,
}

impl Expected {
    fn new() -> Self {
        Self {
            records: BTreeMap::new(),
            counts: BTreeMap::new(),
            shared: Raised::default(),
            words: BTreeMap::new(),
        }
    }

    fn read(&mut self, me: &str, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [word, kind, task, step] = words[..] else { panic!("a process reported {line:?}") };
        let (task, step): (u64, u64) = (task.parse().unwrap(), step.parse().unwrap());
        *self.words.entry(word.to_owned()).or_default() += 1;
        match kind {
            "count" => self.counts.entry((me.to_owned(), task)).or_default().read(word, me, task, step),
            SHARED => self.shared.read(word, me, task, step),
            _ => {
                let stored = if kind == "one" { stored_in(step) } else { Some(step) };
                let record = self.records.entry((kind.to_owned(), me.to_owned(), task));
                record.or_insert_with(|| Possible(vec![(0, None)])).read(word, step, stored);
            }
        }
    }

    /// Compares the records of a process that is dead, while the other one may write.
    async fn check(&mut self, storage: &Storage<File>, me: &str) {
        for ((kind, _, task), possible) in self.records.iter_mut().filter(|((_, of, _), _)| of == me) {
            let what = format!("{kind} of {me}, task {task}");
            if kind == "one" {
                let found = storage.get_credential(format!("one-{me}-{task}")).await.optional().unwrap();
                possible.check(&what, found.as_ref().map(step_of));
                continue;
            }
            let found = storage.get_credentials(&names(me, *task)).await.unwrap();
            let steps: BTreeSet<_> = found.values.values().map(step_of).collect();
            let is_whole = steps.len() <= 1 && [0, BATCH as usize].contains(&found.values.len());
            assert!(is_whole, "{what} is torn: {steps:?}");
            possible.check(&what, steps.first().copied());
        }
        for ((_, task), raised) in self.counts.iter_mut().filter(|((of, _), _)| of == me) {
            let (hot, own) = (Key::new("hot").unwrap(), Key::new(&format!("{me}-{task}")).unwrap());
            let count = async |record: &Key, field: &Key| {
                let record = storage.get_usage(record).await.optional().unwrap();
                record.and_then(|record| record.get(field.as_str())).unwrap_or(0)
            };
            // In one state of the store there are equally many of both; the task of these two reads is dead.
            let found = count(&own, &hot).await;
            assert_eq!(count(&hot, &own).await, found, "an increment_many of {me}, task {task}, is torn");
            raised.check(&format!("count of {me}, task {task}"), found);
        }
    }
}

/// The numbers of records that the store counts are those that it has.
async fn check_numbers(storage: &Storage<File>) {
    let stats = storage.stats().await.unwrap();
    let credentials = storage.list_credentials().await.unwrap().len() as u64;
    let usage = storage.list_usage().await.unwrap().len() as u64;
    assert_eq!((stats.credential_count, stats.usage_record_count), (credentials, usage));
    let exported: Vec<_> = storage.export().try_collect().await.unwrap();
    assert!(exported.len() as u64 >= credentials + usage);
}

pub(crate) fn kill_nine_of_either_of_two_processes() {
    let seed = std::env::var("CRASH_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let wanted = rounds(30);
    println!("{wanted} kills; CRASH_SEED={seed}");
    let folder = tempfile::TempDir::new().unwrap();
    kill_at_random(&folder.path().join("store"), wanted, fastrand::Rng::with_seed(seed));
}

fn kill_at_random(path: &Path, wanted: u64, mut random: fastrand::Rng) {
    let url = format!("file:{}?shared=multi-writer", path.display());
    let (runtime, mut expected) = (runtime(), Expected::new());
    let (mut kills, mut both, mut started) = (0, 0, 0);
    let mut start = |me: &'static str, waits: bool, expected: &mut Expected| {
        started += 1;
        let process = Process::start(&url, me, started * STEPS);
        if waits {
            expected.read(me, &process.begun());
        }
        process
    };
    runtime.block_on(async {
        let storage = open(&url).await.unwrap();
        storage.set_credential(SHARED, json!({ "n": 0 })).await.unwrap();
        storage.close().await.unwrap();
    });
    let mut processes: BTreeMap<&str, Process> =
        ["a", "b"].into_iter().map(|me| (me, start(me, true, &mut expected))).collect();
    while kills < wanted {
        std::thread::sleep(Duration::from_micros(random.u64(..60_000)));
        let victims: &[&'static str] = [&["a"][..], &["b"], &["a", "b"]][random.usize(..3)];
        let killed: Vec<_> = victims.iter().map(|me| (*me, processes.remove(me).unwrap())).collect();
        for (me, process) in killed {
            process.kill().for_each(|line| expected.read(me, &line));
            kills += 1;
        }
        both += u64::from(victims.len() == 2);
        runtime.block_on(async {
            let storage = open(&url).await.expect("the store opens at once after a crash");
            for me in victims {
                expected.check(&storage, me).await;
            }
            if processes.is_empty() {
                let found = raised(&storage).await;
                expected.shared.check(SHARED, found as i64);
                check_numbers(&storage).await;
            }
            storage.close().await.unwrap();
        });
        for me in victims {
            // Some are killed before they have written, or while they open the store.
            let waits = random.u8(..4) > 0;
            processes.insert(me, start(me, waits, &mut expected));
        }
    }
    for (me, process) in processes {
        process.kill().for_each(|line| expected.read(me, &line));
    }
    runtime.block_on(async {
        let storage = open(&url).await.unwrap();
        for me in ["a", "b"] {
            expected.check(&storage, me).await;
        }
        let found = raised(&storage).await;
        expected.shared.check(SHARED, found as i64);
        check_numbers(&storage).await;
        storage.close().await.unwrap();
    });
    println!("{kills} kills, {both} times of both processes at once; outcomes: {:?}", expected.words);
    let count = |word: &str| expected.words.get(word).copied().unwrap_or_default();
    assert!(count("ok") > wanted * 5, "the processes were killed before they wrote");
    assert!(count("no") > 0, "no call was withdrawn");
}
