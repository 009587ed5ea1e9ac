//! Tests of the cache: reads, fills and commits, stopped at each step, in every order of their steps.
//!
//! A reader that has seen a change of a commit sees no older value afterwards, and once the commit has ended,
//! no reader does.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use serde_json::json;

use super::{
    directory::{Access, Directory},
    draft::{Draft, Memory},
    engine::{Engine, tests::Disk},
    options::{FileOptions, Sharing},
    reader::Reader,
    steps::{Orders, Work, at_once},
};
use crate::{Credential, Key, history::DocumentKind};

/// Reads that have ended, in the order of their ends: the values of a read, and how many had ended before it
/// began.
#[derive(Default)]
struct Seen(Mutex<Vec<(usize, Vec<u64>)>>);

impl Seen {
    fn begin(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn end(&self, began: usize, values: Vec<u64>) {
        self.0.lock().unwrap().push((began, values));
    }

    /// Asserts that no read has an older value than one that had ended before it began.
    fn check(&self, order: &[(usize, usize)]) {
        let seen = self.0.lock().unwrap();
        for (began, values) in seen.iter() {
            let newest = seen[..*began].iter().flat_map(|(_, values)| values).max();
            assert!(values.iter().min() >= newest, "{values:?} after {newest:?}, in the order {order:?}");
        }
    }
}

/// A store with two keys, which each commit sets to its own number.
struct Store {
    reader: Reader,
    keys: [Key; 2],
}

impl Store {
    fn new(engine: Engine) -> Self {
        let keys = ["a", "b"].map(|key| Key::new(key).unwrap());
        Self { reader: Reader::new(engine, 1 << 20).unwrap(), keys }
    }

    fn on_disk(path: &std::path::Path) -> Self {
        let directory = Directory::open(path, Access::Create, Sharing::MultiWriter).unwrap();
        Self::new(Engine::open(directory, &FileOptions::new(path)).unwrap())
    }

    /// As the committer does.
    fn commit(&self, n: u64, keys: &[Key]) {
        let current = self.reader.current().unwrap();
        let transaction = current.engine.begin().unwrap();
        let mut memory = Memory::default();
        let mut draft = Draft::new(&transaction, &mut memory, false).unwrap();
        for key in keys {
            draft.put_credential(key.clone(), json!({ "n": n }).to_string().as_bytes()).unwrap();
        }
        let changes = draft.finish(current.engine.is_shared()).unwrap().unwrap();
        self.reader.commit(&current, &changes, || current.engine.commit(transaction)).unwrap();
    }

    /// Reads one after the other.
    fn read(&self, seen: &Seen, keys: &[&Key]) {
        for key in keys {
            let began = seen.begin();
            let found = self.reader.document::<Credential>(key, usize::MAX).unwrap().unwrap();
            seen.end(began, vec![number(&found)]);
        }
    }

    /// Reads together. The values are never those of two states.
    fn read_together(&self, seen: &Seen) {
        let began = seen.begin();
        let found = self.reader.credentials(&self.keys).unwrap();
        let values: Vec<u64> = found.credentials.values().map(number).collect();
        assert!(values.len() == 2 && values[0] == values[1], "torn: {values:?}");
        seen.end(began, values);
    }
}

fn number(credential: &Credential) -> u64 {
    credential.get("n").and_then(serde_json::Value::as_u64).unwrap()
}

/// What the thread reads that fills the cache.
#[derive(Clone, Copy, Debug)]
enum Reads {
    One,
    Both,
}

impl Reads {
    fn run(self, store: &Store, seen: &Seen) {
        match self {
            Self::One => store.read(seen, &[&store.keys[1]]),
            Self::Both => store.read_together(seen),
        }
    }
}

/// What is done in each order, and what was read.
struct Test<'s> {
    store: &'s Store,
    reads: Reads,
    /// The number of the keys that the cache has before.
    cached: usize,
    seen: Seen,
    n: AtomicU64,
}

impl<'s> Test<'s> {
    fn new(store: &'s Store, reads: Reads, cached: usize) -> Self {
        Self { store, reads, cached, seen: Seen::default(), n: AtomicU64::new(1) }
    }

    fn n(&self) -> u64 {
        self.n.load(Ordering::SeqCst)
    }

    fn before(&self) {
        self.n.fetch_add(1, Ordering::SeqCst);
        let Store { reader, keys } = self.store;
        // The reader knows of the last commit of another handle, and the cache is empty.
        self.store.read(&Seen::default(), &keys.each_ref());
        drop(reader.cache().begin(&keys.each_ref().map(|key| (DocumentKind::Credential, key.clone()))));
        self.store.read(&Seen::default(), &keys.each_ref()[..self.cached]);
        self.seen.0.lock().unwrap().clear();
    }

    /// Reads, and fills the cache.
    fn fill(&self) {
        self.reads.run(self.store, &self.seen);
    }

    /// Reads both keys, and nothing comes between.
    fn watch(&self) {
        at_once(|| self.store.read(&self.seen, &self.store.keys.each_ref()));
    }

    /// The commit has ended.
    fn after(&self, order: &[(usize, usize)]) {
        self.seen.check(order);
        let after = Seen::default();
        // What the cache has, then what it has been given.
        for _ in 0..2 {
            self.store.read(&after, &self.store.keys.each_ref());
            self.store.read_together(&after);
        }
        for (_, values) in after.0.into_inner().unwrap() {
            let is_new = values.iter().all(|value| *value == self.n());
            assert!(is_new, "{values:?} after commit {} had ended, in the order {order:?}", self.n());
        }
    }

    /// One thread reads and fills the cache, one commits, and one reads both keys.
    fn run(&self, orders: Orders) -> usize {
        self.store.commit(self.n(), &self.store.keys);
        let commit = || self.store.commit(self.n(), &self.store.keys);
        let threads: [Work<'_>; 3] = [&|| self.fill(), &commit, &|| self.watch()];
        orders.run(&threads, |_, _| true, || self.before(), |order| self.after(order))
    }

    /// One thread reads and fills the cache, one commits another key here, one commits both keys through
    /// another handle, and one reads both.
    fn run_beside(&self, other: &Store, orders: Orders) -> usize {
        other.commit(self.n(), &other.keys);
        let another = [Key::new("c").unwrap()];
        let commit = || self.store.commit(self.n(), &another);
        let foreign = || at_once(|| other.commit(self.n(), &other.keys));
        let threads: [Work<'_>; 4] = [&|| self.fill(), &commit, &foreign, &|| self.watch()];
        // The other handle would wait for the commit here, from its first step to its third.
        let may_run = |next: usize, steps: &[usize]| next != 2 || !(1..3).contains(&steps[1]);
        orders.run(&threads, may_run, || self.before(), |order| self.after(order))
    }
}

#[test]
fn a_reader_that_has_seen_a_commit_sees_all_of_it() {
    let store = Store::new(Disk::default().store());
    for (reads, cached) in [(Reads::One, 2), (Reads::One, 0), (Reads::Both, 2), (Reads::Both, 1)] {
        let count = Test::new(&store, reads, cached).run(Orders::all());
        println!("{reads:?}, {cached} in the cache: {count} orders");
        assert!(count > 500, "only {count} orders");
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).unwrap()
}

#[test]
fn a_reader_that_has_seen_a_commit_of_this_handle_sees_all_of_it_in_a_shared_store() {
    let directory = directory();
    let store = Store::on_disk(directory.path());
    for (reads, cached) in [(Reads::One, 2), (Reads::One, 0), (Reads::Both, 2)] {
        let count = Test::new(&store, reads, cached).run(Orders::some(700));
        println!("{reads:?}, {cached} in the cache: {count} orders");
    }
}

#[test]
fn a_reader_that_has_seen_a_commit_of_another_handle_sees_all_of_it() {
    let directory = directory();
    let (store, other) = (Store::on_disk(directory.path()), Store::on_disk(directory.path()));
    for (reads, cached) in [(Reads::One, 2), (Reads::One, 0), (Reads::Both, 2)] {
        let count = Test::new(&store, reads, cached).run_beside(&other, Orders::some(700));
        println!("{reads:?}, {cached} in the cache: {count} orders");
    }
}
