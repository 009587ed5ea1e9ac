//! The cost of static dispatch in instructions, counted by callgrind: `Storage<Memory>` against `Memory`.
//!
//! `cargo run --release --package instructions` runs itself under `valgrind`, prints a table of instructions
//! per call, and fails if `Storage` costs more. It subtracts a run with few calls from one with many, and
//! divides by the difference in calls.

use std::{
    env,
    hint::black_box,
    pin::pin,
    process::Command,
    task::{Context, Waker},
};

use futures_util::FutureExt;
use gateway_storage::{CredentialStore, Increment, Key, Memory, Storage, UsageStore};
use serde_json::json;

const FEW: u64 = 1_000;
const MANY: u64 = 3_000;

const OPERATIONS: [&str; 2] = ["get_credential", "increment_usage"];

fn main() {
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
        differ |= storage > direct;
    }
    assert!(!differ, "dispatch is not free");
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
