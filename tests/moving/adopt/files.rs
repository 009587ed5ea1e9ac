//! Adopts directories of gcli2api-go's file and Git backends, and directories of credential files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use gateway_storage::{
    ErrorKind, File, Storage,
    adopt::{Adoption, Layout, RemarkKind},
};
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

fn place() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

fn write(folder: &TempDir, name: &str, text: impl AsRef<[u8]>) {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The content and modification time of every file.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, (Option<Vec<u8>>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        found.insert(folder.clone(), (None, fs::metadata(&folder).unwrap().modified().unwrap()));
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let changed = entry.metadata().unwrap().modified().unwrap();
                found.insert(entry.path(), (fs::read(entry.path()).ok(), changed));
            }
        }
    }
    found
}

async fn refused(path: &Path) -> (ErrorKind, String) {
    let error = Adoption::open(&url(path), None).await.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn the_file_backend_as_go_reads_it() -> Result {
    let folder = place();
    copy(&fixture("file"), folder.path());
    let before = snapshot(folder.path());
    assert_eq!(Adoption::open(&url(folder.path()), None).await?.layout(), Layout::Directory);
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(found, as_read_by_go("file"));
    assert_eq!(remarks, []);
    assert!(snapshot(folder.path()) == before, "the source is unchanged");
    Ok(())
}

#[tokio::test]
async fn the_file_backend_into_a_store_on_disk() -> Result {
    let adoption = Adoption::open(&url(&fixture("file")), None).await?;
    let folder = place();
    let config = url(&folder.path().join("store"));
    let storage = Storage::<File>::open(config.as_str()).await?;
    storage.import(adoption.records()).await?.complete()?;
    storage.close().await?;
    let storage = Storage::<File>::open(config.as_str()).await?;
    let stored: Vec<Record> = storage.export().try_collect().await?;
    assert_eq!(document(&stored), as_read_by_go("file"));
    assert_eq!(
        storage.get_credential("user.name@example.com-003").await?.get("HealthScore"),
        Some(&json!(0.178))
    );
    Ok(())
}

#[tokio::test]
async fn a_clone_of_the_git_backend() -> Result {
    let folder = place();
    let clone = folder.path().join("clone");
    let mut git = Command::new("git");
    git.args(["clone", "--quiet"]).arg(fixture("git.bundle")).arg(&clone);
    assert!(git.output().expect("these tests need git").status.success());
    let before = snapshot(&clone);
    assert_eq!(Adoption::open(&url(&clone), None).await?.layout(), Layout::WorkTree);
    let (found, remarks) = adopted(&url(&clone), None).await?;
    // This backend has no usage: Go reads null.
    let mut wanted = as_read_by_go("git");
    wanted["usage"] = json!({});
    assert_eq!(found, wanted);
    assert_eq!(
        of_kind(&remarks, RemarkKind::LeftOut),
        [".git: the history; files are read from the work tree, committed or not"]
    );
    assert_eq!(remarks.len(), 1);
    assert!(snapshot(&clone) == before, "the source is unchanged");

    // A Git store of this crate, and a copy of only its files.
    fs::create_dir(clone.join(".git/gateway-storage")).unwrap();
    let error = Adoption::open(&url(&clone), None).await.unwrap_err();
    assert!(error.to_string().ends_with("holds a store of this crate: copy it instead"), "{error}");
    fs::remove_dir_all(clone.join(".git")).unwrap();
    assert_eq!(adopted(&url(&clone), None).await?, (wanted, Vec::new()));
    for name in ["Alice~8", "a%20b"] {
        fs::write(clone.join(format!("config/{name}.json")), "1").unwrap();
        let (found, remarks) = adopted(&url(&clone), None).await?;
        assert_eq!(found["configs"][name], 1);
        let changed = of_kind(&remarks, RemarkKind::Changed);
        assert!(changed[0].contains("looks like a file of a Git store of this crate"), "{changed:?}");
        fs::remove_file(clone.join(format!("config/{name}.json"))).unwrap();
    }
    Ok(())
}

#[tokio::test]
async fn texts_of_the_git_backend() -> Result {
    let folder = place();
    for (key, text) in
        [("word", "debug"), ("number", "123"), ("empty", ""), ("damaged", "{\"a\": "), ("text", "\"a\"\n")]
    {
        write(&folder, &format!("config/{key}.json"), text);
    }
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(found["configs"], json!({ "word": "debug", "number": 123, "text": "a" }));
    assert_eq!(
        not_understood(&remarks),
        [
            "config/damaged.json: a stored config value can't be read: the text ends too early, at line 1 column 6",
            "config/empty.json: the file is empty",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_directory_of_credentials() -> Result {
    let folder = place();
    copy(&fixture("file/credentials"), folder.path());
    write(&folder, "package.json", r#"{"name":"x"}"#);
    write(&folder, "notes.txt", "x");
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(found["credentials"], as_read_by_go("file")["credentials"]);
    assert_eq!((&found["configs"], &found["usage"]), (&json!({}), &json!({})));
    assert_eq!(not_understood(&remarks), ["package.json: a JSON object without any field of a credential"]);
    assert_eq!(of_kind(&remarks, RemarkKind::LeftOut), ["notes.txt: its name does not end with `.json`"]);
    Ok(())
}

#[tokio::test]
async fn an_ambiguous_layout_is_refused_unless_it_is_named() -> Result {
    let several = |names: &str| {
        let message = format!(
            "the data may have more than one layout: {names}; name one (`--layout` on a command line)"
        );
        (ErrorKind::InvalidValue, message)
    };
    let folder = place();
    write(&folder, "credentials/a.json", r#"{"access_token":"1"}"#);
    write(&folder, "b.json", r#"{"access_token":"2"}"#);
    assert_eq!(refused(folder.path()).await, several("`file`, `folder`"));
    let ids = |found: &Value| found["credentials"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (found, remarks) = adopted(&url(folder.path()), Some(Layout::Directory)).await?;
    assert_eq!(ids(&found), ["a"]);
    assert_eq!(not_understood(&remarks), ["b.json: a JSON file that is no part of the layout"]);
    let (found, _) = adopted(&url(folder.path()), Some(Layout::Folder)).await?;
    assert_eq!(ids(&found), ["b"]);

    let folder = place();
    write(&folder, "config/config.json", r#"{"a":1}"#);
    write(&folder, "config/b.json", "2");
    assert_eq!(refused(folder.path()).await, several("`file`, `git`"));
    let (found, remarks) = adopted(&url(folder.path()), Some(Layout::Directory)).await?;
    assert_eq!(found["configs"], json!({ "a": 1 }));
    assert_eq!(not_understood(&remarks), ["config/b.json: a JSON file that is no part of the layout"]);
    let (found, _) = adopted(&url(folder.path()), Some(Layout::WorkTree)).await?;
    assert_eq!(found["configs"], json!({ "b": 2, "config": { "a": 1 } }));

    let error = Adoption::open(&url(folder.path()), Some(Layout::Keys)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
    Ok(())
}

#[tokio::test]
async fn other_directories_are_refused() {
    let folder = place();
    assert_eq!(refused(folder.path()).await.0, ErrorKind::NotFound, "an empty directory");
    write(&folder, "notes.txt", "x");
    assert_eq!(refused(folder.path()).await.0, ErrorKind::NotFound);
    assert_eq!(refused(&folder.path().join("notes.txt")).await.0, ErrorKind::NotFound);
    assert_eq!(refused(&folder.path().join("nowhere")).await.0, ErrorKind::NotFound);

    let store = folder.path().join("store");
    Storage::<File>::open(url(&store).as_str()).await.unwrap().close().await.unwrap();
    let (kind, message) = refused(&store).await;
    assert!(
        kind == ErrorKind::InvalidValue && message.ends_with("holds a store of this crate: copy it instead")
    );
}

#[tokio::test]
async fn unreadable_entries_get_a_remark_and_do_not_stop_the_others() -> Result {
    let folder = place();
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    write(&folder, "credentials/good.json", r#"{"refresh_token":"r","n":18446744073709551615}"#);
    write(&folder, "credentials/half.json", r#"{"access_token":"ya29.secret"#);
    write(&folder, "credentials/empty.json", "");
    write(&folder, "credentials/list.json", "[]");
    write(&folder, "credentials/deep.json", format!("{{\"a\":{}}}", deep(64)));
    write(&folder, "credentials/large.json", format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20)));
    write(&folder, "credentials/huge.json", " ".repeat((16 << 20) + 1));
    write(&folder, "credentials/wide.json", r#"{"refresh_token":"r","n":18446744073709551616}"#);
    write(&folder, "credentials/.json", "{}");
    write(&folder, "credentials/x.json.tmp", "{}");
    write(&folder, "credentials/dir.json/inner.json", "{}");
    write(&folder, "credentials/sub/inner.json", "{}");
    write(&folder, "credentials/.git/inner.json", "{}");
    let long = format!("credentials/{}.json", "x".repeat(250));
    write(&folder, &long, "{}");
    write(&folder, "credentials/line\nbreak.json", "{}");
    write(
        &folder,
        "config/config.json",
        format!(
            r#"{{"wide":[18446744073709551617],"good":[1],"":2,"deep":{},"last":-9223372036854775809}}"#,
            deep(65)
        ),
    );
    write(&folder, "usage/good.json", r#"{"a":5,"b":-9223372036854775808,"c":7.0}"#);
    write(&folder, "usage/odd.json", r#"{"a":"5","b":1.5,"c":9223372036854775808,"d":1e21,"":1,"ok":1}"#);
    write(&folder, "usage/list.json", "[]");
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(
        found,
        json!({
            "credentials": { "good": { "refresh_token": "r", "n": u64::MAX }, "x".repeat(250): {} },
            "configs": { "good": [1] },
            "usage": { "good": { "a": 5, "b": i64::MIN, "c": 7 }, "odd": { "ok": 1 } },
        })
    );
    let lines = not_understood(&remarks);
    let places: Vec<&str> = lines.iter().map(|line| line.split_once(": ").unwrap().0).collect();
    assert_eq!(
        places,
        [
            "config/config.json ",
            "config/config.json deep",
            "config/config.json last",
            "config/config.json wide",
            "credentials/.json",
            "credentials/deep.json",
            "credentials/dir.json",
            "credentials/empty.json",
            "credentials/half.json",
            "credentials/huge.json",
            "credentials/large.json",
            "credentials/line\nbreak.json",
            "credentials/list.json",
            "credentials/sub",
            "credentials/wide.json",
            "usage/list.json",
            "usage/odd.json ",
            "usage/odd.json a",
            "usage/odd.json b",
            "usage/odd.json c",
            "usage/odd.json d",
        ]
    );
    assert_eq!(
        of_kind(&remarks, RemarkKind::LeftOut),
        [
            "credentials/.git: its name does not end with `.json`",
            "credentials/x.json.tmp: its name does not end with `.json`",
        ]
    );
    let wide =
        lines.iter().filter(|line| line.contains("whole numbers beyond 64 bits can't be stored")).count();
    assert_eq!(wide, 3, "{lines:?}");
    let reasons: String = remarks.iter().map(|remark| remark.reason.as_ref()).collect();
    assert!(!reasons.contains("ya29"), "no value is quoted");
    assert!(!format!("{remarks:?}").contains("half.json"), "no location is in Debug");
    Ok(())
}

#[tokio::test]
async fn links_that_lead_out_and_pipes_are_not_followed() -> Result {
    let (folder, outside) = (place(), place());
    write(&outside, "secret.json", r#"{"access_token":"outside"}"#);
    write(&folder, "credentials/a.json", r#"{"access_token":"inside"}"#);
    symlink(outside.path().join("secret.json"), folder.path().join("credentials/link.json")).unwrap();
    symlink(outside.path(), folder.path().join("usage")).unwrap();
    let pipe = folder.path().join("credentials/pipe.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (found, remarks) = adopted(&url(folder.path()), Some(Layout::Directory)).await?;
    assert_eq!(found["credentials"], json!({ "a": { "access_token": "inside" } }));
    assert_eq!(
        not_understood(&remarks),
        [
            "credentials/link.json: a symbolic link that leads out of the directory, which is not followed",
            "credentials/pipe.json: not a regular file",
            "usage: a symbolic link that leads out of the directory, which is not followed",
        ]
    );
    let link = outside.path().join("link");
    symlink(folder.path(), &link).unwrap();
    for path in [link.clone(), link.join(".").join("")] {
        assert_eq!(refused(&path).await.0, ErrorKind::InvalidValue);
    }
    Ok(())
}

/// Like a secret mounted by the kubelet: links to `..data`, which is a link to a directory that is replaced
/// as a whole.
#[tokio::test]
async fn a_mounted_secret() -> Result {
    let folder = place();
    for id in ["alice", "bob"] {
        write(&folder, &format!("..2026_11_29/{id}.json"), json!({ "access_token": id }).to_string());
        symlink(format!("..data/{id}.json"), folder.path().join(format!("{id}.json"))).unwrap();
    }
    symlink("..2026_11_29", folder.path().join("..data")).unwrap();
    let before = snapshot(folder.path());
    assert_eq!(Adoption::open(&url(folder.path()), None).await?.layout(), Layout::Folder);
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(
        found["credentials"],
        json!({ "alice": { "access_token": "alice" }, "bob": { "access_token": "bob" } })
    );
    assert_eq!(not_understood(&remarks), [""; 0], "those directories are not documents");
    assert!(snapshot(folder.path()) == before, "the source is unchanged");

    // With `items` a secret has directories, which are links themselves.
    let folder = place();
    write(&folder, "..2026_11_29/credentials/alice.json", r#"{"access_token":"x"}"#);
    write(&folder, "..2026_11_29/config/config.json", r#"{"retries":3}"#);
    symlink("..2026_11_29", folder.path().join("..data")).unwrap();
    for name in ["credentials", "config"] {
        symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
    }
    assert_eq!(Adoption::open(&url(folder.path()), None).await?.layout(), Layout::Directory);
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(found["credentials"], json!({ "alice": { "access_token": "x" } }));
    assert_eq!((&found["configs"], not_understood(&remarks).len()), (&json!({ "retries": 3 }), 0));
    Ok(())
}

#[tokio::test]
async fn no_path_leads_out_of_the_directory() -> Result {
    let base = place();
    write(&base, "secret.json", r#"{"access_token":"outside"}"#);
    write(&base, "in/real.json", r#"{"access_token":"inside"}"#);
    write(&base, "in/deep/er/x.json", r#"{"access_token":"deep"}"#);
    let inside = base.path().join("in");
    let absolute = inside.join("real.json");
    for (name, target) in [
        ("up", "../secret.json"),
        ("updown", "../in/real.json"),
        ("far", "deep/er/../../../secret.json"),
        ("absolute", absolute.to_str().unwrap()),
        ("root", "/"),
        ("parent", ".."),
        ("proc", "/proc/self/root/etc/hostname"),
        ("out", "hop/secret.json"),
        ("circle", "round.json"),
        ("round", "circle.json"),
        ("nothing", "nowhere.json"),
        ("through", "real.json/x"),
    ] {
        symlink(target, inside.join(format!("{name}.json"))).unwrap();
    }
    symlink("..", inside.join("hop")).unwrap();
    for (name, target) in [
        ("a", "./deep/er/x.json"),
        ("b", "deep//er/../er/x.json"),
        ("c", "b.json"),
        ("d", "short/x.json"),
        ("e", "short/../../real.json"),
    ] {
        symlink(target, inside.join(format!("{name}.json"))).unwrap();
    }
    symlink("deep/er", inside.join("short")).unwrap();
    let (found, remarks) = adopted(&url(&inside), Some(Layout::Folder)).await?;
    let deep = json!({ "access_token": "deep" });
    let real = json!({ "access_token": "inside" });
    assert_eq!(
        found["credentials"],
        json!({ "a": deep, "b": deep, "c": deep, "d": deep, "e": real, "real": real })
    );
    let why = |name: &str| {
        let line =
            not_understood(&remarks).into_iter().find(|line| line.starts_with(&format!("{name}.json: ")));
        line.unwrap_or_else(|| panic!("nothing of {name}: {remarks:?}"))
    };
    for out in ["up", "updown", "far", "absolute", "root", "parent", "proc", "out"] {
        assert!(why(out).ends_with("leads out of the directory, which is not followed"), "{}", why(out));
    }
    for circle in ["circle", "round"] {
        assert!(why(circle).ends_with("in a loop"), "{}", why(circle));
    }
    assert!(why("nothing").ends_with("a symbolic link to a missing file"));
    assert!(why("through").ends_with("a symbolic link through a file"));
    Ok(())
}

#[tokio::test]
async fn links_that_are_not_followed_are_counted() {
    let folder = place();
    symlink("/etc", folder.path().join("credentials")).unwrap();
    let message = |links: &str| {
        format!(
            "no legacy data of gcli2api-go was recognized; {links}; \
             if there is some, name its layout (`--layout` on a command line)"
        )
    };
    let out = |count: &str| {
        format!("{count} skipped: a symbolic link that leads out of the directory, which is not followed")
    };
    assert_eq!(refused(folder.path()).await, (ErrorKind::NotFound, message(&out("1 entry was"))));
    for name in ["a", "b"] {
        symlink("/etc/hostname", folder.path().join(format!("{name}.json"))).unwrap();
    }
    assert_eq!(refused(folder.path()).await, (ErrorKind::NotFound, message(&out("3 entries were"))));
    symlink("nothing", folder.path().join("c.json")).unwrap();
    let links = format!(
        "{}; 1 entry was skipped: missing, or a symbolic link to a missing file",
        out("3 entries were")
    );
    assert_eq!(refused(folder.path()).await, (ErrorKind::NotFound, message(&links)));
}

#[tokio::test]
async fn a_byte_order_mark_is_skipped() -> Result {
    let folder = place();
    let marked = |text: &str| format!("\u{feff}{text}");
    write(&folder, "credentials/a.json", marked(r#"{"access_token":"x"}"#));
    write(&folder, "config/config.json", marked(r#"{"retries":3}"#));
    write(&folder, "usage/k.json", marked(r#"{"n":1}"#));
    let wanted = json!({
        "credentials": { "a": { "access_token": "x" } },
        "configs": { "retries": 3 },
        "usage": { "k": { "n": 1 } },
    });
    assert_eq!(adopted(&url(folder.path()), None).await?, (wanted.clone(), Vec::new()));
    let wide: Vec<u8> = marked("{}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    write(&folder, "credentials/wide.json", wide);
    let (_, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!(not_understood(&remarks), ["credentials/wide.json: it is UTF-16: save it as UTF-8"]);

    let document = place();
    write(&document, "export.json", marked(&wanted.to_string()));
    let path = document.path().join("export.json");
    assert_eq!(Adoption::open(&url(&path), None).await?.layout(), Layout::Document);
    assert_eq!(adopted(&url(&path), None).await?, (wanted, Vec::new()));
    let clone = place();
    write(&clone, "config/word.json", marked("debug"));
    assert_eq!(adopted(&url(clone.path()), None).await?.0["configs"], json!({ "word": "debug" }));
    Ok(())
}

#[tokio::test]
async fn keys_of_every_kind_are_in_order() -> Result {
    let folder = place();
    // The order of their names with `.json` would differ.
    for id in ["a", "a-b", "a.b", "A", "a b", "团", "$where", "con", "..", "a.json", "-rf", "%2e"] {
        write(&folder, &format!("credentials/{id}.json"), r#"{"token":"x"}"#);
    }
    let (found, remarks) = adopted(&url(folder.path()), None).await?;
    assert_eq!((found["credentials"].as_object().unwrap().len(), remarks.len()), (12, 0));
    Ok(())
}

#[tokio::test]
async fn exported_documents() -> Result {
    for backend in ["file", "mongodb", "postgres", "redis"] {
        let place = place();
        // gcli2api-go exports what it reads.
        let mut document = as_read_by_go(backend);
        document["backend"] = json!(backend);
        document["exported_at"] = json!("2026-11-22T21:35:40.6Z");
        document["more"] = json!(1);
        document["usage"]["odd"] = json!({ "n": "many", "ok": 1.0 });
        write(&place, "export.json", format!("{document:#}"));
        let before = snapshot(place.path());
        let url = url(&place.path().join("export.json"));
        assert_eq!(Adoption::open(&url, None).await?.layout(), Layout::Document);
        let (found, remarks) = adopted(&url, None).await?;
        let mut wanted = as_read_by_go(backend);
        for credential in wanted["credentials"].as_object_mut().unwrap().values_mut() {
            let fields = credential.as_object_mut().unwrap();
            assert_eq!(
                fields.remove("updated_at").is_some() && fields.remove("id").is_some(),
                backend == "mongodb"
            );
        }
        for count in wanted["usage"]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .flat_map(|record| record.as_object_mut().unwrap().values_mut())
        {
            if let Some(text) = count.as_str() {
                *count = json!(text.parse::<i64>().unwrap());
            }
        }
        wanted["usage"]["odd"] = json!({ "ok": 1 });
        assert_eq!(found, wanted, "{backend}");
        let added = of_kind(&remarks, RemarkKind::LeftOut);
        assert_eq!(added.len(), usize::from(backend == "mongodb"), "{added:?}");
        assert_eq!(remarks.len(), 2 + added.len(), "{remarks:?}");
        assert!(not_understood(&remarks)[1].starts_with("usage/odd/n: "));
        assert!(snapshot(place.path()) == before, "the source is unchanged");
    }
    Ok(())
}

#[tokio::test]
async fn damaged_documents_and_exports_of_this_crate_are_refused() -> Result {
    let place = place();
    write(&place, "half.json", r#"{"credentials":{"a":{"access_token":"ya29"#);
    let path = place.path().join("half.json");
    let adoption = Adoption::open(&url(&path), None).await?;
    let error = adoption.records().try_collect::<Vec<Record>>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("line 1") && !format!("{error:?}").contains("ya29"), "{error}");

    let storage = Storage::<Memory>::open("memory:").await?;
    let mut file = Vec::new();
    let header = gateway_storage::archive::Header::new("memory");
    gateway_storage::archive::write(&header, storage.export(), &mut file).await?;
    write(&place, "export.jsonl", file);
    let (kind, message) = refused(&place.path().join("export.jsonl")).await;
    assert!(kind == ErrorKind::InvalidValue && message.ends_with("import it instead"), "{message}");
    Ok(())
}
