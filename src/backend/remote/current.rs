//! The pool of a store that can be replaced while calls use it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::{Error, Result};

/// A pool that another one can replace.
pub(crate) trait Retire {
    /// Sends waiting calls to the next pool. The pool ends with the last call that uses it.
    fn retire(&self);
}

/// The pool in use, until the store is closed.
pub(crate) struct Current<P>(ArcSwapOption<P>);

impl<P: Retire> Current<P> {
    pub(crate) fn new(pool: P) -> Self {
        Self(ArcSwapOption::from_pointee(pool))
    }

    pub(crate) fn get(&self) -> Result<Arc<P>> {
        self.0.load_full().ok_or_else(Error::closed)
    }

    /// Replaces a pool, unless another one has replaced it meanwhile.
    pub(crate) fn replace(&self, old: &Arc<P>, pool: P) -> Result<()> {
        let pool = Arc::new(pool);
        let found = self.0.compare_and_swap(old, Some(pool.clone()));
        match &*found {
            Some(found) if Arc::ptr_eq(found, old) => old.retire(),
            Some(_) => pool.retire(),
            None => return Err(Error::closed()),
        }
        Ok(())
    }

    /// Retires the last pool and returns it.
    pub(crate) fn close(&self) -> Option<Arc<P>> {
        self.0.swap(None).inspect(|pool| pool.retire())
    }
}
