//! `Transactional` for `Broken`, with its faults.

use std::collections::BTreeMap;

use gateway_storage::{
    ConfigStore, ConfigValue, Credential, ErrorKind, Key, Result, Transaction, Transactional,
    memory::MemoryTransaction,
};

use super::{Broken, Fault::*};

impl Transactional for Broken {
    type Transaction = BrokenTransaction;

    async fn begin(&self) -> Result<BrokenTransaction> {
        let inner = self.memory.begin().await?;
        Ok(BrokenTransaction { inner: Some(inner), broken: self.clone(), written: BTreeMap::new() })
    }
}

/// A transaction of [`Broken`].
pub struct BrokenTransaction {
    inner: Option<MemoryTransaction>,
    broken: Broken,
    written: BTreeMap<Key, ConfigValue>,
}

impl BrokenTransaction {
    fn inner(&mut self) -> &mut MemoryTransaction {
        self.inner.as_mut().expect("the transaction has not ended")
    }
}

impl Transaction for BrokenTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        self.inner().get_credential(id).await
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        self.inner().set_credential(id, credential).await
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        self.inner().delete_credential(id).await
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        let own = self.written.contains_key(key);
        if self.broken.has(NoOwnWrites) || self.broken.has(NoSnapshot) && !own {
            return self.broken.memory.get_config(key).await;
        }
        self.inner().get_config(key).await
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        if self.broken.has(DirtyReads) {
            return self.broken.memory.set_config(key, value).await;
        }
        self.written.insert(key.clone(), value.clone());
        self.inner().set_config(key, value).await
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        self.inner().delete_config(key).await
    }

    async fn commit(mut self) -> Result<()> {
        let inner = self.inner.take().expect("the transaction has not ended");
        match inner.commit().await {
            Err(error) if error.kind() == ErrorKind::Conflict && self.broken.has(ConflictIsFinal) => {
                Err(error.with_retryable(false))
            }
            Err(error) if error.kind() == ErrorKind::Conflict && self.broken.has(LostUpdate) => {
                for (key, value) in &self.written {
                    self.broken.memory.set_config(key, value).await?;
                }
                Ok(())
            }
            other => other,
        }
    }

    async fn rollback(mut self) -> Result<()> {
        let inner = self.inner.take().expect("the transaction has not ended");
        if self.broken.has(RollbackCommits) { inner.commit().await } else { inner.rollback().await }
    }
}

impl Drop for BrokenTransaction {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take().filter(|_| self.broken.has(DropCommits)) {
            drop(futures_util::FutureExt::now_or_never(inner.commit()));
        }
    }
}
