//! Transactions in a scope.

use super::{Scope, Scoped};
use crate::{
    ConfigValue, Credential, Key, Result, Transaction, Transactional,
    wrap::{TransactionWrapper, TransactionalWrapper, Wrapped},
};

#[deny(clippy::missing_trait_methods)]
impl<B: Transactional> TransactionalWrapper<B> for Scope {
    type Transaction = Scoped<B::Transaction>;

    async fn begin(&self, inner: &B) -> Result<Self::Transaction> {
        Ok(Wrapped::new(self.clone(), self.result(inner.begin().await)?))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<T: Transaction> TransactionWrapper<T> for Scope {
    async fn get_credential(&mut self, inner: &mut T, id: &Key) -> Result<Credential> {
        self.result(inner.get_credential(&self.outer(id)?).await)
    }

    async fn set_credential(&mut self, inner: &mut T, id: &Key, credential: &Credential) -> Result<()> {
        self.result(inner.set_credential(&self.outer(id)?, credential).await)
    }

    async fn delete_credential(&mut self, inner: &mut T, id: &Key) -> Result<()> {
        self.result(inner.delete_credential(&self.outer(id)?).await)
    }

    async fn get_config(&mut self, inner: &mut T, key: &Key) -> Result<ConfigValue> {
        self.result(inner.get_config(&self.outer(key)?).await)
    }

    async fn set_config(&mut self, inner: &mut T, key: &Key, value: &ConfigValue) -> Result<()> {
        self.result(inner.set_config(&self.outer(key)?, value).await)
    }

    async fn delete_config(&mut self, inner: &mut T, key: &Key) -> Result<()> {
        self.result(inner.delete_config(&self.outer(key)?).await)
    }

    async fn commit(self, inner: T) -> Result<()> {
        self.result(inner.commit().await)
    }

    async fn rollback(self, inner: T) -> Result<()> {
        self.result(inner.rollback().await)
    }
}
