//! A backend that is chosen at run time: by a URL, by a map of options, or by a path.

use std::path::PathBuf;

use gateway_storage::{Either, ErrorKind, File, Memory, Open, Storage, either::EitherOptions, one_of};
use serde_json::json;

type Three = one_of!(File, Either<Memory, File>);

fn refused(options: serde_json::Value) -> String {
    serde_json::from_value::<EitherOptions<File, Either<Memory, File>>>(options)
        .map(drop)
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn the_scheme_of_a_url_picks_the_backend() {
    assert_eq!(Three::SCHEMES, ["file", "memory", "file"]);
    let storage = Storage::<Three>::open("memory:").await.unwrap();
    assert!(matches!(storage.backend(), Either::Right(Either::Left(_))));
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    for _ in 0..2 {
        let storage = Storage::<Three>::open(&url).await.unwrap();
        assert!(matches!(storage.backend(), Either::Left(_)), "the first of two backends with this scheme");
        storage.close().await.unwrap();
    }
    let path = folder.path().join("data");
    let paths: [EitherOptions<File, Memory>; 3] =
        [path.as_path().into(), (&path).into(), path.clone().into()];
    for options in paths {
        let storage = Storage::<Either<File, Memory>>::open(options).await.unwrap();
        assert_eq!(storage.label(), "file");
        storage.close().await.unwrap();
    }

    let error = Storage::<Either<File, Memory>>::open("redis://:hunter2@host").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    assert_eq!(error.to_string(), "the URL of this backend begins with one of `file:`, `memory:`");
    let error = Storage::<Either<File, Memory>>::open("file:./data?dedline=1s").await.unwrap_err();
    assert!(error.to_string().contains("its options: cache, create, deadline"), "{error}");
}

#[test]
fn a_map_names_the_backend() {
    let read = |options| serde_json::from_value::<EitherOptions<Memory, File>>(options).unwrap();
    assert!(matches!(read(json!("memory:")), EitherOptions::Left(_)));
    assert!(matches!(read(json!({ "backend": "memory" })), EitherOptions::Left(_)));
    match read(json!({ "backend": "file", "path": "./data", "deadline": "3s" })) {
        EitherOptions::Right(options) => {
            assert_eq!(options.path, PathBuf::from("./data"));
            assert_eq!(options.deadline.as_secs(), 3);
        }
        EitherOptions::Left(_) => panic!("the other backend"),
    }

    let backend = "the field `backend` must name the backend";
    assert_eq!(refused(json!({ "path": "hunter2" })), backend);
    assert_eq!(refused(json!({ "backend": ["hunter2"] })), backend);
    assert_eq!(refused(json!(7)), "the options of a backend must be a URL or a map");
    assert_eq!(refused(json!({ "backend": "redis" })), "`backend` must be one of file, memory");
    let unknown = refused(json!({ "backend": "file", "path": "./data", "dedline": "hunter2" }));
    assert!(
        unknown.starts_with("the options of the backend `file`: unknown field `dedline`, expected"),
        "{unknown}"
    );
    assert_eq!(
        refused(json!({ "backend": "file" })),
        "the options of the backend `file`: missing field `path`"
    );
    assert_eq!(
        refused(json!({ "backend": "file", "path": "./data", "deadline": "hunter2" })),
        "the option `deadline` of the backend `file` has a value that it can't have"
    );
}
