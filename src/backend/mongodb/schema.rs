//! The collections, and the document that says that they are ours.

use mongodb::{
    bson::{Document, RawDocumentBuf, doc},
    error::{Error as DriverError, ErrorKind as DriverKind},
};

use tokio::time::timeout;

use super::{
    MongoDb,
    desk::PLANS,
    pool::{Lane, Lease},
    server::{Call, upserted},
};
use crate::{Error, ErrorKind, Result};

/// What this crate writes. A later version is refused.
pub(super) const VERSION: i32 = 1;

/// Holds one document, `{ _id: "schema", version: 1 }`.
const META: &str = "meta";

/// MongoDB 5.0: snapshots outside of transactions, and names with `.` anywhere.
const OLDEST_WIRE_VERSION: i32 = 13;

/// `NamespaceExists`
const EXISTS: i32 = 48;

impl MongoDb {
    /// Refuses a server that can't hold our data.
    pub(super) async fn check_server(&self) -> Result<()> {
        let call = self.call()?;
        let lane = call.lease().await?;
        let hello = call.ask(lane.database.run_command(doc! { "hello": 1 })).await?;
        if hello.get_i32("maxWireVersion").unwrap_or_default() < OLDEST_WIRE_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the MongoDB server is too old: version 5.0 or later is needed",
            ));
        }
        Ok(())
    }

    /// Sees to it that the collections are there and are ours; makes them only if it may.
    pub(super) async fn ready_schema(&self, create: bool) -> Result<()> {
        let call = self.call()?;
        let lane = call.lease().await?;
        if version(&call, &lane).await?.is_some() {
            if create {
                drop(timeout(self.deadline / 2, self.ready_indexes(&call)).await);
            }
            return Ok(());
        }
        if !create {
            return Err(Error::new(ErrorKind::NotFound, "the database holds no store of this crate"));
        }
        for collection in [&lane.credentials, &lane.configs, &lane.usage] {
            let found = call.ask(collection.find_one(doc! {})).await?;
            // Another one may have made the store, and used it, meanwhile.
            if found.is_some() && version(&call, &lane).await?.is_none() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the database has collections of these names from another program: choose another database",
                ));
            }
        }
        let make = |lane: Lease| async move {
            for name in [META, "credentials", "configs", "usage"] {
                match lane.database.create_collection(name).await {
                    Err(error) if is_there_already(&error) => {}
                    result => result?,
                }
            }
            let ours = doc! { "$setOnInsert": { "version": VERSION } };
            let meta = lane.database.collection::<RawDocumentBuf>(META);
            upserted(|| meta.update_one(doc! { "_id": "schema" }, ours.clone()).upsert(true)).await
        };
        call.write(lane, make).await?;
        drop(timeout(self.deadline / 2, self.ready_indexes(&call)).await);
        Ok(())
    }

    /// With which a plan finds the records that are over, and those that are to be finished, without reading the others.
    ///
    /// Plans work without them, but more slowly: so a user who may not make them opens the store all the same, and opening does
    /// not wait for long while the server makes them of many records. There is one command, and the server makes what is missing.
    async fn ready_indexes(&self, call: &Call<'_>) -> Result<()> {
        let indexes = vec![
            doc! { "key": { "expires": 1 }, "name": "expires" },
            // Its values are small, and only records that are pending are in it.
            doc! { "key": { "pending.back": 1 }, "name": "pending", "sparse": true },
        ];
        let create = |lane: Lease| {
            let command = doc! { "createIndexes": PLANS, "indexes": indexes.clone() };
            async move { lane.database.run_command(command).await }
        };
        call.write(call.lease().await?, create).await.map(drop)
    }
}

fn is_there_already(error: &DriverError) -> bool {
    matches!(&*error.kind, DriverKind::Command(answer) if answer.code == EXISTS)
}

/// None: there is no store.
async fn version(call: &Call<'_>, lane: &Lane) -> Result<Option<i32>> {
    let meta = lane.database.collection::<Document>(META);
    let found = call.ask(meta.find_one(doc! { "_id": "schema" })).await?;
    let Some(found) = found else { return Ok(None) };
    match found.get_i32("version") {
        Ok(VERSION) => Ok(Some(VERSION)),
        Ok(later) if later > VERSION => Err(Error::new(
            ErrorKind::Unsupported,
            "the database's store was made by a later version of this crate",
        )),
        _ => Err(Error::new(ErrorKind::Corrupt, "the database's store does not say which version it is")),
    }
}
