//! A directory of `File`.

use std::{os::unix::fs::PermissionsExt, path::Path};

use gateway_storage::File;
use tempfile::TempDir;

use super::*;

/// Copies the store. Git does not keep the modes of its directory and files.
fn load() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(&path).unwrap();
    set(&path, 0o700);
    for entry in fs::read_dir(fixture("file")).unwrap() {
        let entry = entry.unwrap();
        let copy = path.join(entry.file_name());
        fs::copy(entry.path(), &copy).unwrap();
        set(&copy, 0o600);
    }
    let url = format!("file:{}", path.display());
    (folder, url)
}

#[tokio::test]
async fn a_file_store_of_the_previous_version() -> Result {
    let (_folder, url) = load();
    let storage = Storage::<File>::open(url.as_str()).await?;
    everything(&storage).await?;
    let (records, entries): (Vec<Record>, _) =
        (storage.export().try_collect().await?, audit(&storage).await?);
    storage.close().await?;
    let storage = Storage::<File>::open(url.as_str()).await?;
    let found: Vec<Record> = storage.export().try_collect().await?;
    assert_eq!((found, audit(&storage).await?), (records, entries));
    storage.close().await
}
