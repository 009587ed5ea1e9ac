//! The open database: begins transactions, and closes.

use std::sync::{Arc, PoisonError, RwLock};

use redb::{ReadOnlyDatabase, ReadTransaction, ReadableDatabase, WriteTransaction};

use super::tables::{not_read, not_written};
use crate::{Error, Result};

/// The open database. Each snapshot has it, so that it can be read until its last one is dropped. None once
/// it is closed.
#[derive(Clone)]
pub(super) struct Opened(Arc<RwLock<Option<Database>>>);

pub(super) enum Database {
    Writable(redb::Database),
    ReadOnly(ReadOnlyDatabase),
}

impl From<Database> for Opened {
    fn from(database: Database) -> Self {
        Self(Arc::new(RwLock::new(Some(database))))
    }
}

impl Opened {
    /// Whether both are the same open database.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether no snapshot has it.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub(super) fn is_read_only(&self) -> bool {
        matches!(&*self.0.read().unwrap_or_else(PoisonError::into_inner), Some(Database::ReadOnly(_)))
    }

    /// Begins to read the state after the last commit.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction> {
        let transaction = match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Database::Writable(database)) => database.begin_read(),
            Some(Database::ReadOnly(database)) => database.begin_read(),
            None => return Err(Error::closed()),
        };
        transaction.map_err(|error| not_read(error.into()))
    }

    /// Begins the only write transaction. Waits while another process has one.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction> {
        let transaction = match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Database::Writable(database)) => database.begin_write(),
            _ => return Err(Error::closed()),
        };
        transaction.map_err(|error| not_written(error.into()))
    }

    /// Closes it cleanly, so that opening it again needs no repair.
    pub(super) fn close(&self) -> Result<()> {
        let closed = match self.0.write().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Database::Writable(database)) => database.close(),
            Some(Database::ReadOnly(database)) => database.close(),
            None => Ok(()),
        };
        closed.map_err(|error| not_written(error.into()))
    }
}
