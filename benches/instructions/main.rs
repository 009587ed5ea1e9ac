//! Instructions per call of `File`, `Memory` and an `Either` that is `Memory`, counted by callgrind and
//! pinned in `pinned.txt`, and the cost of static dispatch: `Storage<Memory>` against `Memory`.
//!
//! `cargo run --release --package instructions` runs itself under `valgrind`, and fails if a call is dearer
//! than pinned, or much cheaper. With `COSTS=write` in the environment it writes `pinned.txt`. The
//! operations are those of `tests/costs/`, which counts the instructions of the backends with a server: an
//! optimized build of their drivers would take minutes.
//!
//! For static dispatch it prints a table of instructions per call, and fails if `Storage` costs more than
//! [`INLINED`]. It subtracts a run with few calls from one with many, and divides by the difference in calls.

use std::{
    env,
    hint::black_box,
    path::Path,
    pin::pin,
    process::{self, Command},
    task::{Context, Waker},
};

use callgrind::{CHILD, Phases};
use futures_util::FutureExt;
use gateway_storage::{
    CredentialStore, Either, File, FileOptions, Increment, Key, Memory, Open, Storage, UsageStore,
};
use pins::{Column, Margin, Rows, Table};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

#[path = "../../tests/costs/callgrind.rs"]
mod callgrind;
#[path = "../../tests/costs/operations.rs"]
mod operations;
// `testkit` would need the drivers.
#[path = "../../testkit/src/pins.rs"]
#[expect(unreachable_pub)]
mod pins;

const FEW: u64 = 1_000;
const MANY: u64 = 3_000;

/// What the future of `Storage` around that of the backend may cost where the compiler does not inline the
/// latter: it cost 8 to 25 instructions.
const INLINED: f64 = 30.0;

const OPERATIONS: [&str; 2] = ["get_credential", "increment_usage"];

fn main() {
    if let Some(backend) = env::var_os(CHILD) {
        return run_operations(backend.to_str().unwrap());
    }
    let words: Vec<String> = env::args().skip(1).collect();
    if let [operation, way, count] = &words[..] {
        return run(operation, way, count.parse().unwrap());
    }
    println!("| operation | direct | through `Storage` |\n|---|---:|---:|");
    let mut differ = false;
    for operation in OPERATIONS {
        let [direct, storage] = ["direct", "storage"].map(|way| {
            let (many, few) = (instructions(operation, way, MANY), instructions(operation, way, FEW));
            (many - few) as f64 / (MANY - FEW) as f64
        });
        println!("| {operation} | {direct} | {storage} |");
        differ |= storage > direct + INLINED;
    }
    assert!(!differ, "`Storage` costs more than {INLINED} instructions");
    check_operations();
}

/// Compares the operations of each backend with the pinned instructions.
fn check_operations() {
    let rows: Rows =
        ["either", "file", "memory"].iter().flat_map(|name| callgrind::count(name, &[])).collect();
    let table = Table {
        path: &Path::new(env!("CARGO_MANIFEST_DIR")).join("pinned.txt"),
        title: "Instructions of a call, of all threads. To write it anew:\n\
                COSTS=write cargo run --release --package instructions",
        columns: &[Column { name: "instructions", margin }],
        rewrite: "COSTS=write cargo run --release --package instructions",
    };
    if let Err(faults) = table.check(&rows) {
        eprintln!("{faults}");
        process::exit(1);
    }
    println!("{} operations cost what is pinned", rows.len());
}

/// In seven runs in environments of several sizes, which move the stack, the numbers of `Memory` differed by
/// up to 2 percent, and one batch through `Either` by 9. Those of `File` differed by up to 117 instructions
/// for a read, which depends on the slot that arc-swap finds; by up to 13 percent for an export, a list and a
/// stream, by up to 5 for other calls, which another thread answers, and by 2,100 instructions for a short
/// one of them.
fn margin(row: &str) -> Margin {
    let both = |margin| Margin { above: margin, below: margin };
    let (backend, operation) = row.split_once('/').unwrap_or((row, ""));
    let is_list = ["export", "list_", "stream_"].iter().any(|start| operation.starts_with(start));
    match backend {
        "either" if operation == "set_credentials" => both((10, 20)),
        "file" if is_list => both((15, 4000)),
        "file" if operation.starts_with("get_") => both((3, 150)),
        "file" => both((6, 4000)),
        _ => both((3, 20)),
    }
}

/// Runs the operations that a backend has, in the process that is counted.
fn run_operations(backend: &str) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    macro_rules! run {
        ($backend:ty, $options:expr, [$($capability:ident)*]) => {{
            let storage = open::<$backend>($options, &runtime);
            let mut phases = Phases { runtime: &runtime, wants: |_| true };
            $(operations::$capability(&mut phases, &storage);)*
        }};
    }
    match backend {
        "either" => run!(
            Either<File, Memory>,
            "memory:".try_into().unwrap(),
            [credentials configs conditional leases plans usage export backend]
        ),
        "file" => {
            run!(File, FileOptions::new(path), [credentials configs conditional leases plans usage export backend])
        }
        _ => run!(
            Memory,
            "memory:".try_into().unwrap(),
            [credentials configs conditional leases plans usage cache transactions export backend]
        ),
    }
}

fn open<B: Open>(options: B::Options, runtime: &Runtime) -> Storage<B> {
    Storage::new(runtime.block_on(B::open(options)).unwrap())
}

/// The instructions of a whole run of this program.
fn instructions(operation: &str, way: &str, count: u64) -> u64 {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args([operation, way, &count.to_string()])
        .output()
        .expect("this needs valgrind: apt-get install valgrind");
    let output = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{output}");
    let collected = output.lines().find_map(|line| line.split_once("Collected :")).expect("callgrind counts");
    collected.1.trim().parse().expect("a number")
}

fn run(operation: &str, way: &str, count: u64) {
    let storage = Storage::<Memory>::open("memory:").now_or_never().unwrap().unwrap();
    let (id, field) = (Key::new("alice").unwrap(), Key::new("requests").unwrap());
    storage.set_credential(&id, json!({ "access_token": "x" })).now_or_never().unwrap().unwrap();
    // By another call than the counted one, which the compiler would not inline if it had a second caller.
    let step = Increment::new(&id, &field, 1);
    storage.increment_many(&[step]).now_or_never().unwrap().unwrap().complete().unwrap();
    match (operation, way) {
        ("get_credential", "direct") => get_directly(storage.backend(), &id, count),
        ("get_credential", "storage") => get(&storage, &id, count),
        ("increment_usage", "direct") => increment_directly(storage.backend(), &id, &field, count),
        ("increment_usage", "storage") => increment(&storage, &id, &field, count),
        _ => panic!("unknown operation"),
    }
}

#[inline(always)]
fn poll<F: Future>(call: F) {
    let mut context = Context::from_waker(Waker::noop());
    drop(black_box(pin!(call).poll(&mut context)));
}

#[inline(never)]
fn get_directly(memory: &Memory, id: &Key, count: u64) {
    for _ in 0..count {
        poll(memory.get_credential(black_box(id)));
    }
}

#[inline(never)]
fn get(storage: &Storage<Memory>, id: &Key, count: u64) {
    for _ in 0..count {
        poll(storage.get_credential(black_box(id)));
    }
}

#[inline(never)]
fn increment_directly(memory: &Memory, key: &Key, field: &Key, count: u64) {
    for _ in 0..count {
        poll(memory.increment_usage(black_box(key), black_box(field), 1));
    }
}

#[inline(never)]
fn increment(storage: &Storage<Memory>, key: &Key, field: &Key, count: u64) {
    for _ in 0..count {
        poll(storage.increment_usage(black_box(key), black_box(field), 1));
    }
}
