//! Tests of the cache: reads, fills and commits, stopped at each step, in every order of their steps.
//!
//! A reader that has seen a change of a commit sees no older value afterwards, and once the commit has
//! ended, no reader does.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use serde_json::json;

use super::{
    directory::{Access, Directory},
    draft::{Draft, Memory},
    engine::{Engine, tests::Disk},
    options::{FileOptions, Sharing},
    reader::Reader,
    steps::BETWEEN,
};
use crate::{Credential, Key, history::DocumentKind};

/// Which thread runs. One runs at a time, until its next step.
struct Turns {
    state: Mutex<State>,
    /// For the scheduler, then for each thread.
    changed: Vec<Condvar>,
}

#[derive(Default)]
struct State {
    /// None: the scheduler.
    running: Option<usize>,
    /// Whether the thread that ran last has ended its work.
    has_ended: bool,
    is_over: bool,
}

impl Turns {
    fn give_back(&self, has_ended: bool) {
        let mut state = self.state.lock().unwrap();
        (state.running, state.has_ended) = (None, has_ended);
        self.changed[0].notify_one();
    }

    /// Returns false once there are no more turns.
    fn wait(&self, me: usize) -> bool {
        let waits = |state: &mut State| state.running != Some(me) && !state.is_over;
        let state = self.changed[me + 1].wait_while(self.state.lock().unwrap(), waits).unwrap();
        !state.is_over
    }

    /// Lets this thread run until its next step. Returns whether it has ended its work.
    fn run(&self, next: usize) -> bool {
        let mut state = self.state.lock().unwrap();
        state.running = Some(next);
        self.changed[next + 1].notify_one();
        self.changed[0].wait_while(state, |state| state.running.is_some()).unwrap().has_ended
    }

    fn end(&self) {
        self.state.lock().unwrap().is_over = true;
        self.changed.iter().for_each(Condvar::notify_one);
    }
}

/// What a thread does in each order.
type Work<'w> = &'w (dyn Fn() + Sync);

/// Orders of steps: all, or this many of them by chance.
struct Orders {
    /// The thread that was picked at each step, and how many could have been.
    picked: Vec<(usize, usize)>,
    by_chance: Option<(fastrand::Rng, usize)>,
}

impl Orders {
    fn all() -> Self {
        Self { picked: Vec::new(), by_chance: None }
    }

    /// Some of them, the same ones in each run. `ALL_ORDERS=1` takes all.
    fn some(count: usize) -> Self {
        let is_all = std::env::var_os("ALL_ORDERS").is_some();
        let by_chance = (!is_all).then(|| (fastrand::Rng::with_seed(count as u64), count));
        Self { by_chance, ..Self::all() }
    }

    /// Does the work of all threads in each order. Returns the number of orders. `may_run` says whether a
    /// thread can go on after each has had this many steps.
    fn run(
        mut self,
        threads: &[Work<'_>],
        may_run: impl Fn(usize, &[usize]) -> bool,
        before: impl Fn(),
        after: impl Fn(&[(usize, usize)]),
    ) -> usize {
        let changed = (0..=threads.len()).map(|_| Condvar::new()).collect();
        let turns = Arc::new(Turns { state: Mutex::default(), changed });
        let panicked = AtomicBool::new(false);
        thread::scope(|scope| {
            for (me, work) in threads.iter().enumerate() {
                let (turns, panicked) = (turns.clone(), &panicked);
                scope.spawn(move || {
                    let own = turns.clone();
                    BETWEEN.set(Some(Rc::new(move || {
                        own.give_back(false);
                        own.wait(me);
                    })));
                    while turns.wait(me) {
                        // Its message is printed.
                        let is_done = catch_unwind(AssertUnwindSafe(work)).is_ok();
                        panicked.fetch_or(!is_done, Ordering::SeqCst);
                        turns.give_back(true);
                    }
                });
            }
            let explored = catch_unwind(AssertUnwindSafe(|| {
                for count in 1.. {
                    before();
                    self.once(&turns, threads.len(), &may_run);
                    assert!(!panicked.load(Ordering::SeqCst), "in the order {:?}", self.picked);
                    after(&self.picked);
                    if !self.has_next() {
                        return count;
                    }
                }
                0
            }));
            turns.end();
            explored.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn once(&mut self, turns: &Turns, threads: usize, may_run: impl Fn(usize, &[usize]) -> bool) {
        let (mut done, mut steps) = (vec![false; threads], vec![0; threads]);
        for at in 0.. {
            let able: Vec<usize> =
                (0..threads).filter(|next| !done[*next] && may_run(*next, &steps)).collect();
            if able.is_empty() {
                return;
            }
            if at == self.picked.len() {
                let first = self.by_chance.as_mut().map_or(0, |(random, _)| random.usize(..able.len()));
                self.picked.push((first, able.len()));
            }
            let next = able[self.picked[at].0];
            done[next] = turns.run(next);
            steps[next] += 1;
        }
    }

    fn has_next(&mut self) -> bool {
        if let Some((_, left)) = &mut self.by_chance {
            self.picked.clear();
            *left -= 1;
            return *left > 0;
        }
        while let Some((picked, able)) = self.picked.pop() {
            if picked + 1 < able {
                self.picked.push((picked + 1, able));
                return true;
            }
        }
        false
    }
}

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
        let found = self.reader.documents::<Credential>(&self.keys, usize::MAX).unwrap().unwrap();
        let values: Vec<u64> = found.values.values().map(number).collect();
        assert!(values.len() == 2 && values[0] == values[1], "torn: {values:?}");
        seen.end(began, values);
    }

    /// Runs without a stop between.
    fn at_once(&self, work: impl FnOnce(&Self)) {
        let own = BETWEEN.take();
        work(self);
        BETWEEN.set(own);
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
        self.store.at_once(|store| store.read(&self.seen, &store.keys.each_ref()));
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
        let foreign = || other.at_once(|other| other.commit(self.n(), &other.keys));
        let threads: [Work<'_>; 4] = [&|| self.fill(), &commit, &foreign, &|| self.watch()];
        // The other handle would wait for the commit here, from its first step to its third.
        let may_run = |next: usize, steps: &[usize]| next != 2 || !(1..3).contains(&steps[1]);
        orders.run(&threads, may_run, || self.before(), |order| self.after(order))
    }
}

#[test]
fn whoever_has_seen_a_commit_sees_all_of_it() {
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
fn whoever_has_seen_a_commit_of_this_handle_sees_all_of_it_in_a_shared_store() {
    let directory = directory();
    let store = Store::on_disk(directory.path());
    for (reads, cached) in [(Reads::One, 2), (Reads::One, 0), (Reads::Both, 2)] {
        let count = Test::new(&store, reads, cached).run(Orders::some(700));
        println!("{reads:?}, {cached} in the cache: {count} orders");
    }
}

#[test]
fn whoever_has_seen_a_commit_of_another_handle_sees_all_of_it() {
    let directory = directory();
    let (store, other) = (Store::on_disk(directory.path()), Store::on_disk(directory.path()));
    for (reads, cached) in [(Reads::One, 2), (Reads::One, 0), (Reads::Both, 2)] {
        let count = Test::new(&store, reads, cached).run_beside(&other, Orders::some(700));
        println!("{reads:?}, {cached} in the cache: {count} orders");
    }
}
