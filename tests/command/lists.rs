//! `list --prefix`, `--after` and `--limit`.

use std::process::Stdio;

use gateway_storage::{Credential, File, Key, Storage};
use serde_json::{Map, Value, json};
use testkit::servers::output_of;

use super::{Place, ended};

const LISTS: [&[&str]; 5] = [
    &["credential", "list"],
    &["credential", "list", "--reveal"],
    &["config", "list"],
    &["config", "list", "--reveal"],
    &["usage", "list"],
];

/// Keys that a pattern or a shell could misread, sorted.
const HOSTILE: [&str; 8] = ["%", "*", "-a", "[x]", "a*", "a/1", "a/2", "\u{10ffff}"];

fn filled() -> Place {
    let place = Place::new();
    for key in HOSTILE {
        place.ok(&["credential", "set", "--", key, r#"{"t":"s3cret"}"#]);
        place.ok(&["config", "set", "--", key, "1"]);
        place.ok(&["usage", "increment", "--", key, "n", "1"]);
    }
    place
}

/// The keys that a list names.
fn keys(place: &Place, list: &[&str], options: &[&str]) -> Vec<String> {
    let out = place.ok(&[list, options].concat());
    let text: Vec<String> =
        out.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect();
    let document: Vec<String> = match place.json(&[list, options].concat()) {
        Value::Array(keys) => keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect(),
        Value::Object(records) => records.into_iter().map(|(key, _)| key).collect(),
        other => panic!("{other}"),
    };
    assert_eq!(text, document, "{list:?} {options:?}");
    text
}

#[test]
fn a_list_has_the_records_that_its_options_name() {
    let place = filled();
    for list in LISTS {
        for (options, wanted) in [
            (&[][..], &HOSTILE[..]),
            (&["--prefix", ""], &HOSTILE),
            (&["--prefix", "a"], &["a*", "a/1", "a/2"]),
            (&["--prefix", "a*"], &["a*"]),
            (&["--prefix", "*"], &["*"]),
            (&["--prefix", "%"], &["%"]),
            (&["--prefix", "[x]"], &["[x]"]),
            (&["--prefix=-"], &["-a"]),
            (&["--prefix", "none\nat all"], &[]),
            (&["--limit", "2"], &["%", "*"]),
            (&["--limit", "0"], &[]),
            (&["--after", "[x]", "--limit", "1"], &["a*"]),
            (&["--after=-a", "--limit", "1"], &["[x]"]),
            (&["--after", "not there", "--limit", "3"], &["\u{10ffff}"]),
            (&["--prefix", "a", "--after", "a*", "--limit", "5"], &["a/1", "a/2"]),
            (&["--after", "\u{10ffff}"], &[]),
        ] {
            assert_eq!(keys(&place, list, options), wanted, "{list:?} {options:?}");
        }
        assert_eq!(place.fails_as(2, &[list, &["--limit", "many"]].concat()), "usage");
        assert_eq!(place.fails_as(2, &[list, &["--after", ""]].concat()), "invalid_key");
    }
}

#[test]
fn a_list_shows_the_values_of_credentials_only_on_request() {
    let place = filled();
    let hidden = place.run(&["-v", "credential", "list", "--prefix", "a"]);
    assert!(!hidden.out.contains("s3cret"));
    let lines: Vec<&str> = hidden.err.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["open", "stream_credentials", "close"]);
    let shown = place.ok(&["credential", "list", "--prefix", "a/", "--reveal"]);
    assert_eq!(shown, "a/1\t{\"t\":\"s3cret\"}\na/2\t{\"t\":\"s3cret\"}\n");
    let document = place.json(&["credential", "list", "--prefix", "a/1", "--reveal"]);
    assert_eq!(document, json!({ "a/1": { "t": "s3cret" } }));
    let document = place.json(&["usage", "list", "--prefix", "a/"]);
    assert_eq!(document, json!({ "a/1": { "n": 1 }, "a/2": { "n": 1 } }));
}

#[tokio::test]
async fn a_reader_may_close_the_pipe_of_a_list() {
    let place = Place::new();
    let storage = Storage::<File>::open(&*place.url()).await.unwrap();
    let keys: Vec<Key> = (0..2000).map(|i| Key::new(&format!("{i:0200}")).unwrap()).collect();
    let empty = || Credential::new(Map::new()).unwrap();
    storage.set_credentials(keys.iter().map(|key| (key.clone(), empty()))).await.unwrap().complete().unwrap();
    storage.set_configs(keys.iter().map(|key| (key.clone(), json!(1)))).await.unwrap().complete().unwrap();
    let counts: Vec<_> = keys.iter().map(|key| (key.clone(), "n", 1)).collect();
    storage.increment_many(&counts).await.unwrap().complete().unwrap();
    storage.close().await.unwrap();

    // More than a pipe holds.
    for list in LISTS {
        for output in ["human", "json"] {
            let mut command = place.command(&[list, &["--prefix", "0", "--output", output]].concat());
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stdout.take());
            let ended = ended(output_of(child));
            assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{list:?}");
        }
    }
    assert_eq!(last_line(&place.ok(&["config", "list"])), keys[1999].as_str());
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

#[cfg(target_os = "linux")]
#[test]
fn a_list_that_can_not_be_written_is_an_error() {
    let place = filled();
    for list in LISTS {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let line = [list, &["--output", "json"]].concat();
        let ended = ended(place.command(&line).stdout(full).output().unwrap());
        let error: Value = serde_json::from_str(&ended.err).unwrap();
        assert_eq!((ended.code, &error["error"]["kind"]), (Some(1), &json!("output")), "{list:?}");
    }
}
