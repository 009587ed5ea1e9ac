//! Moves a `File` store to Redis through an export file, and verifies the result.
//!
//!     cargo run --example export_import --features redis -- file:./data redis://localhost
//!
//! The export is a snapshot of the store, although writes go on. The whole file is checked before its first
//! record is imported. Afterwards the digest of its records is compared with that of the target's.

use std::{env, error::Error};

use gateway_storage::{
    File, Redis, Storage,
    archive::{self, Header},
    migrate::{CopyOptions, VerifyOptions, copy, verify},
};
use tokio::fs::{self, OpenOptions};

const BACKUP: &str = "backup.ndjson";
const UNFINISHED: &str = "backup.ndjson.tmp";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut url = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());

    let files = Storage::<File>::open(url("file:./data")).await?;
    let header = Header::new(files.label()).with_snapshot(files.exports_snapshot());
    // The file contains secrets, so only its owner may read it. It gets its final name when it is complete.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(UNFINISHED).await?;
    let contents = archive::write(&header, files.export(), &mut file).await?;
    file.sync_all().await?;
    fs::rename(UNFINISHED, BACKUP).await?;
    println!(
        "exported {} credentials, {} configs, {} counters",
        contents.credentials, contents.configs, contents.usage
    );

    archive::check(fs::File::open(BACKUP).await?).await?;
    let redis = Storage::<Redis>::open(url("redis://localhost")).await?;
    let report = copy(archive::read(fs::File::open(BACKUP).await?), &redis, &CopyOptions::default(), |_| {})
        .await?
        .complete()?;
    println!("imported: {}", report.tallies.total());

    let options = VerifyOptions::default();
    let verified =
        verify(archive::read(fs::File::open(BACKUP).await?), redis.export(), &options, |_| {}).await?;
    println!("the target has all records of the file: {}", verified.has_source());
    redis.close().await?;
    files.close().await?;
    Ok(())
}
