//! The collections, and the document that says that they are ours.

use mongodb::{
    bson::{Document, RawDocumentBuf, doc},
    error::{Error as DriverError, ErrorKind as DriverKind},
};

use super::{MongoDb, pool::Lane, server::Call};
use crate::{Error, ErrorKind, Result, backend::remote::Effect};

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
        let hello = call.ask(Effect::Read, lane.database.run_command(doc! { "hello": 1 })).await?;
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
            return Ok(());
        }
        if !create {
            return Err(Error::new(ErrorKind::NotFound, "the database holds no store of this crate"));
        }
        for collection in [&lane.credentials, &lane.configs, &lane.usage] {
            let found = call.ask(Effect::Read, collection.find_one(doc! {})).await?;
            // Another one may have made the store, and used it, meanwhile.
            if found.is_some() && version(&call, &lane).await?.is_none() {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the database has collections of these names from another program: choose another database",
                ));
            }
        }
        for name in [META, lane.credentials.name(), lane.configs.name(), lane.usage.name()] {
            let made = async {
                match lane.database.create_collection(name).await {
                    Err(error) if is_there_already(&error) => Ok(()),
                    result => result,
                }
            };
            call.ask(Effect::Write, std::pin::pin!(made)).await?;
        }
        let meta = lane.database.collection::<RawDocumentBuf>(META);
        let ours = || {
            meta.update_one(doc! { "_id": "schema" }, doc! { "$setOnInsert": { "version": VERSION } })
                .upsert(true)
        };
        call.upsert(ours).await.map(drop)
    }
}

fn is_there_already(error: &DriverError) -> bool {
    matches!(&*error.kind, DriverKind::Command(answer) if answer.code == EXISTS)
}

/// None: there is no store.
async fn version(call: &Call<'_>, lane: &Lane) -> Result<Option<i32>> {
    let meta = lane.database.collection::<Document>(META);
    let found = call.ask(Effect::Read, meta.find_one(doc! { "_id": "schema" })).await?;
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
