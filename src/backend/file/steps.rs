//! The points between two steps of a read or a commit, at which a test lets another thread go on.

/// Such a point.
#[cfg(not(test))]
#[inline]
pub(super) const fn step() {}

#[cfg(test)]
pub(super) use tests::{Orders, Work, at_once, step};

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
        sync::{
            Arc, Condvar, Mutex,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

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

    thread_local! {
        static OWN: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
    }

    /// Lets another thread run, and waits for the next turn of this one.
    pub(in crate::backend::file) fn step() {
        let own = OWN.with_borrow(Clone::clone);
        if let Some((turns, me)) = own {
            turns.give_back(false);
            turns.wait(me);
        }
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
    pub(in crate::backend::file) type Work<'w> = &'w (dyn Fn() + Sync);

    /// Orders of steps: all of them, or a number of them by chance.
    pub(in crate::backend::file) struct Orders {
        /// The thread that was picked at each step, and how many could have been.
        picked: Vec<(usize, usize)>,
        by_chance: Option<(fastrand::Rng, usize)>,
    }

    impl Orders {
        pub(in crate::backend::file) fn all() -> Self {
            Self { picked: Vec::new(), by_chance: None }
        }

        /// Some of them, the same ones in each run. `ALL_ORDERS=1` takes all.
        pub(in crate::backend::file) fn some(count: usize) -> Self {
            let is_all = std::env::var_os("ALL_ORDERS").is_some();
            let by_chance = (!is_all).then(|| (fastrand::Rng::with_seed(count as u64), count));
            Self { by_chance, ..Self::all() }
        }

        /// Does the work of all threads in each order. Returns the number of orders. `may_run` says whether a
        /// thread can go on, by the number of steps that each has had.
        pub(in crate::backend::file) fn run(
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
                        OWN.set(Some((turns.clone(), me)));
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

    /// Does this work without a stop at its steps.
    pub(in crate::backend::file) fn at_once(work: impl FnOnce()) {
        let own = OWN.take();
        work();
        OWN.set(own);
    }
}
