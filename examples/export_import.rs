//! From files to Redis, by way of an export file: `cargo run --example export_import --features redis -- file:./data redis://localhost`
//!
//! The store is exported as one state, although writes go on. The file is checked to its end before anything is imported, and its
//! digest is that of the records: it is compared with the target's in the end.

use std::{
    env,
    error::Error,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
};

use gateway_storage::{
    File, Redis, Storage,
    archive::{self, Header},
    migrate::{CopyOptions, VerifyOptions, copy, verify},
};

const BACKUP: &str = "backup.ndjson";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut url = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());

    let files = Storage::<File>::open(url("file:./data").as_str()).await?;
    let header = Header::new(files.label()).with_snapshot(files.exports_snapshot());
    let mut exported = Vec::new(); // a `tokio::fs::File` takes any size in constant memory
    let contents = archive::write(&header, files.export(), &mut exported).await?;
    // It holds secrets: nobody else reads it.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(BACKUP)?;
    file.write_all(&exported)?;
    file.sync_all()?;
    println!(
        "exported {} credentials, {} configs, {} counters",
        contents.credentials, contents.configs, contents.usage
    );

    let backup = fs::read(BACKUP)?;
    archive::check(&backup[..]).await?;
    let redis = Storage::<Redis>::open(url("redis://localhost").as_str()).await?;
    let report =
        copy(archive::read(&backup[..]), &redis, &CopyOptions::default(), |_| {}).await?.complete()?;
    println!("imported: {}", report.tallies.total());

    let options = VerifyOptions::default();
    let verified = verify(archive::read(&backup[..]), redis.export(), &options, |_| {}).await?;
    println!("the same: {}", verified.has_source());
    redis.close().await?;
    files.close().await?;
    Ok(())
}
