//! Creates the collections, and the document that marks them as a store.

use mongodb::bson::{Document, RawDocumentBuf, doc};
use tokio::time::timeout;

use super::{
    MongoDb,
    command::retry_upsert,
    error,
    lease::{END, LEASES},
    plan_session::PLANS,
    pool::{Permit, Pool},
    server::Call,
};
use crate::{Error, ErrorKind, Result};

/// The version that this crate writes. Later ones are refused.
pub(super) const VERSION: i32 = 1;

/// Holds one document, `{ _id: "schema", version: 1 }`.
const META: &str = "meta";

/// How long a lease is kept after its end. If the server's clock is set back by less, numbers still grow.
const LEASE_MEMORY_SECONDS: i32 = 3600;

/// MongoDB 5.0, the first with snapshots outside of transactions and with `.` anywhere in names.
const OLDEST_WIRE_VERSION: i32 = 13;

/// `NamespaceExists`
const EXISTS: i32 = 48;

impl MongoDb {
    /// Refuses a server that can't hold our data.
    pub(super) async fn check_server(&self) -> Result<()> {
        let call = self.call()?;
        let permit = call.permit().await?;
        let hello = call.ask(permit.database.run_command(doc! { "hello": 1 })).await?;
        if hello.get_i32("maxWireVersion").unwrap_or_default() < OLDEST_WIRE_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the MongoDB server is too old: version 5.0 or later is required",
            ));
        }
        Ok(())
    }

    /// Checks that the database holds a store, and makes one if `create` allows it.
    pub(super) async fn ready_schema(&self, create: bool) -> Result<()> {
        let call = self.call()?;
        let permit = call.permit().await?;
        if version(&call, &permit).await?.is_some() {
            // The pool may have one permit only.
            drop(permit);
            if create {
                self.ready_indexes(&call).await;
            }
            return Ok(());
        }
        if !create {
            return Err(Error::new(ErrorKind::NotFound, "the database holds no store of this crate"));
        }
        for collection in [&permit.credentials, &permit.configs, &permit.usage] {
            let found = call.ask(collection.find_one(doc! {})).await?;
            // Another process may have made the store, and used it, in the meantime.
            if found.is_some() && version(&call, &permit).await?.is_none() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the database has collections of the same names from another program: choose another database",
                ));
            }
        }
        let make = |permit: Permit| async move {
            for name in [META, "credentials", "configs", "usage"] {
                match permit.database.create_collection(name).await {
                    Err(error) if error::code_of(&error) == Some(EXISTS) => {}
                    result => result?,
                }
            }
            let version = doc! { "$setOnInsert": { "version": VERSION } };
            let meta = permit.database.collection::<RawDocumentBuf>(META);
            retry_upsert(|| meta.update_one(doc! { "_id": "schema" }, version.clone()).upsert(true)).await
        };
        call.write(permit, make).await?;
        self.ready_indexes(&call).await;
        Ok(())
    }

    /// Makes the indexes by which a plan finds expired and pending records without reading the others, and
    /// the one by which the server deletes leases.
    ///
    /// Without them plans are only slower, and leases stay. So a user without the right to make them can
    /// still open the store, and opening does not wait long for the server to build them. Existing indexes
    /// stay as they are.
    async fn ready_indexes(&self, call: &Call<'_>) {
        let of_plans = vec![
            doc! { "key": { "expires": 1 }, "name": "expires" },
            // It is small: it holds pending records only.
            doc! { "key": { "pending.back": 1 }, "name": "pending", "sparse": true },
        ];
        let of_leases =
            vec![doc! { "key": { END: 1 }, "name": END, "expireAfterSeconds": LEASE_MEMORY_SECONDS }];
        let create = async |collection: &'static str, indexes: Vec<Document>| -> Result<()> {
            let create = |permit: Permit| {
                let command = doc! { "createIndexes": collection, "indexes": indexes.clone() };
                async move { permit.database.run_command(command).await }
            };
            call.write(call.permit().await?, create).await.map(drop)
        };
        let created = async { tokio::join!(create(PLANS, of_plans), create(LEASES, of_leases)) };
        drop(timeout(self.deadline / 2, created).await);
    }
}

/// The version of the store in the database, if it holds one.
async fn version(call: &Call<'_>, pool: &Pool) -> Result<Option<i32>> {
    let meta = pool.database.collection::<Document>(META);
    let found = call.ask(meta.find_one(doc! { "_id": "schema" })).await?;
    let Some(found) = found else { return Ok(None) };
    match found.get_i32("version") {
        Ok(VERSION) => Ok(Some(VERSION)),
        Ok(later) if later > VERSION => Err(Error::new(
            ErrorKind::Unsupported,
            "the database's store was made by a later version of this crate",
        )),
        _ => Err(Error::new(ErrorKind::Corrupt, "the version of the database's store can't be read")),
    }
}
