//! Points between the steps of a read or a commit, at which a test lets another thread go on.

#[cfg(not(test))]
#[inline]
pub(super) const fn step() {}

#[cfg(test)]
thread_local! {
    /// What this thread does between two steps, in a test.
    pub(super) static BETWEEN: std::cell::RefCell<Option<std::rc::Rc<dyn Fn()>>> = const { std::cell::RefCell::new(None) };
}

#[cfg(test)]
pub(super) fn step() {
    if let Some(between) = BETWEEN.with_borrow(Clone::clone) {
        between();
    }
}
