//! From files to Redis, by way of an export file: `cargo run --example export_import --features redis -- file:./data redis://localhost`
//!
//! The store is exported as one state, although writes go on. The file is checked to its end before anything is imported, and its
//! digest is that of the records: it is compared with the target's in the end.

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

    let files = Storage::<File>::open(url("file:./data").as_str()).await?;
    let header = Header::new(files.label()).with_snapshot(files.exports_snapshot());
    // It holds secrets: nobody else reads it. It has its name once it is whole.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(UNFINISHED).await?;
    let contents = archive::write(&header, files.export(), &mut file).await?;
    file.sync_all().await?;
    fs::rename(UNFINISHED, BACKUP).await?;
    println!(
        "exported {} credentials, {} configs, {} counters",
        contents.credentials, contents.configs, contents.usage
    );

    archive::check(fs::File::open(BACKUP).await?).await?;
    let redis = Storage::<Redis>::open(url("redis://localhost").as_str()).await?;
    let report = copy(archive::read(fs::File::open(BACKUP).await?), &redis, &CopyOptions::default(), |_| {})
        .await?
        .complete()?;
    println!("imported: {}", report.tallies.total());

    let options = VerifyOptions::default();
    let verified =
        verify(archive::read(fs::File::open(BACKUP).await?), redis.export(), &options, |_| {}).await?;
    println!("the same: {}", verified.has_source());
    redis.close().await?;
    files.close().await?;
    Ok(())
}
