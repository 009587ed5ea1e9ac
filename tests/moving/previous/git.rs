//! A repository of `Git`, with its work tree and the files that the store keeps in `.git`.

use std::{path::Path, process::Command};

use gateway_storage::{Git, History};

use super::*;

pub(crate) const ARCHIVE: &str = "git.tar.gz";

pub(crate) fn tar(arguments: &[&str], folder: &Path) {
    let made = Command::new("tar").args(arguments).arg("-C").arg(folder).arg("store").output();
    assert!(made.expect("these tests need tar").status.success());
}

#[tokio::test]
async fn a_git_store_of_the_previous_version() -> Result {
    let folder = tempfile::tempdir().unwrap();
    tar(&["--no-same-owner", "-xzf", fixture(ARCHIVE).to_str().unwrap()], folder.path());
    let url = format!("git:{}", folder.path().join("store").display());
    let storage = Storage::<Git>::open(url.as_str()).await?;
    let key = Key::new("retries")?;
    let before = storage.backend().history(DocumentKind::Config, &key, 10).await?;
    assert_eq!(before.len(), 4);
    let values = [json!(3), json!(2), json!(1), json!(2)];
    for (commit, value) in before.iter().zip(values) {
        let record = Record::Config { key: key.clone(), value: value.try_into()? };
        assert_eq!(storage.backend().value_at(commit.id, DocumentKind::Config, &key).await?, record);
    }
    let gone = storage.backend().history(DocumentKind::Credential, &Key::new("gone")?, 10).await?;
    assert_eq!(gone.len(), 2, "a deleted record has a history");

    documents(&storage).await?;
    let newest = storage.backend().history(DocumentKind::Config, &key, 1).await?[0].id;
    assert_ne!(newest, before[0].id);
    storage.backend().revert(gone[0].id).await?;
    assert_eq!(storage.get_credential("gone").await?, json!({ "access_token": "revoked" }).try_into()?);
    storage.close().await?;
    let storage = Storage::<Git>::open(url.as_str()).await?;
    assert!(storage.backend().history(DocumentKind::Config, &key, 100).await?.ends_with(&before));
    assert_eq!(storage.list_credentials().await?.len(), exported_credentials().await + 1);
    storage.close().await
}

async fn exported_credentials() -> usize {
    exported().await.iter().filter(|record| record.kind() == RecordKind::Credential).count()
}
