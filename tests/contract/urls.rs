//! What a store can be opened with: URLs of the backend's schemes in each type of text, and paths.

use std::{fmt::Debug, path::Path, str::FromStr};

use gateway_storage::{
    Error, ErrorKind, File, FileOptions, Git, GitOptions, Memory, MongoDb, Open, Postgres, Redis, Storage,
};
use testkit::servers;

/// A URL with this scheme that its backend accepts.
fn url(scheme: &str) -> String {
    let rest = match scheme {
        "memory" => "",
        "file" | "git" => "./x",
        "redis+unix" => "///run/x.sock",
        _ if scheme.ends_with("+sentinel") => "//h/m",
        _ => "//h",
    };
    format!("{scheme}:{rest}")
}

/// Checks which schemes the backend's options have.
fn check<B: Open>(all: &[&str])
where
    B::Options: FromStr<Err = Error>
        + TryFrom<String, Error = Error>
        + for<'u> TryFrom<&'u String, Error = Error>
        + Debug,
{
    for scheme in all {
        let url = url(scheme);
        let read = B::Options::try_from(url.as_str());
        let texts =
            [url.parse::<B::Options>(), B::Options::try_from(&url), B::Options::try_from(url.clone())];
        for text in texts {
            assert_eq!(format!("{text:?}"), format!("{read:?}"), "each type of text is read alike");
        }
        if B::SCHEMES.contains(scheme) {
            read.unwrap_or_else(|error| panic!("{url}: {error}"));
        } else {
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
            assert!(error.to_string().starts_with("the URL of this backend begins with "), "{url}: {error}");
        }
    }
}

#[test]
fn each_backend_reads_its_schemes_and_no_other() {
    let of_backends =
        [File::SCHEMES, Git::SCHEMES, Memory::SCHEMES, MongoDb::SCHEMES, Postgres::SCHEMES, Redis::SCHEMES];
    let all =
        [of_backends.concat(), vec!["", "FILE", "files", "http", "redis+tls", "mongodb+", "pg"]].concat();
    check::<File>(&all);
    check::<Git>(&all);
    check::<Memory>(&all);
    check::<MongoDb>(&all);
    check::<Postgres>(&all);
    check::<Redis>(&all);
}

#[tokio::test]
async fn the_first_scheme_is_the_label() {
    async fn check<B: Open>(url: String) {
        let storage = Storage::<B>::open(url.as_str()).await.unwrap();
        assert_eq!(storage.label(), B::SCHEMES[0]);
        storage.close().await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    check::<File>(format!("file:{}/f", folder.path().display())).await;
    check::<Git>(format!("git:{}/g", folder.path().display())).await;
    check::<Memory>("memory:".to_owned()).await;
    check::<MongoDb>(servers::mongodb()).await;
    check::<Postgres>(servers::postgres()).await;
    check::<Redis>(servers::redis()).await;
}

#[tokio::test]
async fn a_path_is_the_directory_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (file, git) = (folder.path().join("f?x%20"), folder.path().join("g"));
    Storage::<File>::open(&file).await.unwrap().close().await.unwrap();
    Storage::<File>::open(file.as_path()).await.unwrap().close().await.unwrap();
    assert!(file.join("store.redb").is_file(), "a path is not a URL: nothing is cut off or decoded");
    Storage::<Git>::open(git.clone()).await.unwrap().close().await.unwrap();
    assert!(git.join(".git").is_dir());
    assert_eq!(FileOptions::from(Path::new("x")), FileOptions::new("x"));
    assert_eq!(GitOptions::from(&git), GitOptions::new(&git));
    let unexpanded = Storage::<File>::open(Path::new("~/x")).await.unwrap_err();
    assert_eq!(unexpanded.kind(), ErrorKind::InvalidValue);
}
