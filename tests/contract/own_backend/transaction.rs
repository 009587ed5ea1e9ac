//! Transactions: a snapshot and the changes, which are compared and applied at commit.

use std::{collections::BTreeMap, sync::Arc};

use gateway_storage::{
    ConfigValue, Credential, Error, ErrorKind, Key, Result, Transaction, Transactional, history::DocumentKind,
};

use super::{
    Own,
    documents::{Documents, Name, missing},
};

pub(super) struct OwnTransaction {
    own: Own,
    snapshot: Documents,
    /// The texts that it stores; `None` deletes.
    changes: BTreeMap<Name, Option<String>>,
}

impl OwnTransaction {
    fn find(&self, name: &Name) -> Result<&str> {
        match self.changes.get(name) {
            Some(changed) => changed.as_deref().ok_or_else(|| missing(&name.1)),
            None => self.snapshot.find(name).map(|text| &**text),
        }
    }

    fn delete(&mut self, name: Name) -> Result<()> {
        self.find(&name)?;
        self.changes.insert(name, None);
        Ok(())
    }
}

impl Transactional for Own {
    type Transaction = OwnTransaction;

    async fn begin(&self) -> Result<OwnTransaction> {
        let snapshot = self.lock()?.documents.clone();
        Ok(OwnTransaction { own: self.clone(), snapshot, changes: BTreeMap::new() })
    }
}

impl Transaction for OwnTransaction {
    async fn get_credential(&mut self, id: &Key) -> Result<Credential> {
        Credential::from_json(self.find(&(DocumentKind::Credential, id.clone()))?)
    }

    async fn set_credential(&mut self, id: &Key, credential: &Credential) -> Result<()> {
        self.changes.insert((DocumentKind::Credential, id.clone()), Some(credential.to_json()));
        Ok(())
    }

    async fn delete_credential(&mut self, id: &Key) -> Result<()> {
        self.delete((DocumentKind::Credential, id.clone()))
    }

    async fn get_config(&mut self, key: &Key) -> Result<ConfigValue> {
        ConfigValue::from_json(self.find(&(DocumentKind::Config, key.clone()))?)
    }

    async fn set_config(&mut self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.changes.insert((DocumentKind::Config, key.clone()), Some(value.to_json()));
        Ok(())
    }

    async fn delete_config(&mut self, key: &Key) -> Result<()> {
        self.delete((DocumentKind::Config, key.clone()))
    }

    async fn commit(self) -> Result<()> {
        let mut store = self.own.lock()?;
        let is_unchanged = |name: &Name| match (self.snapshot.get(name), store.documents.get(name)) {
            (None, None) => true,
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            _ => false,
        };
        if !self.changes.keys().all(is_unchanged) {
            return Err(Error::new(ErrorKind::Conflict, "a record was changed since the transaction began"));
        }
        for (name, text) in &self.changes {
            store.documents.put(name.clone(), text.as_deref());
        }
        Ok(())
    }
}
