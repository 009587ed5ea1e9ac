//! The export document of the Go program gcli2api-go.

use futures_util::stream;
use gateway_storage::{
    ErrorKind, Record,
    archive::{self, GoDocument},
};
use serde_json::{Value, json};

use super::{config, credential, few, header, usage};

fn read(document: &Value) -> GoDocument {
    archive::read_go(document.to_string().as_bytes()).unwrap()
}

async fn written(records: Vec<Record>) -> Value {
    let mut file = Vec::new();
    archive::write_go(&header(), stream::iter(records.into_iter().map(Ok)), &mut file).await.unwrap();
    serde_json::from_slice(&file).unwrap()
}

#[test]
fn reads_documents_of_the_program() {
    let texts = [
        include_str!("../../fixtures/go/export-file.json"),
        include_str!("../../fixtures/go/export-redis.json"),
    ];
    let [file, redis] = texts.map(|text| {
        let (document, wanted) = (archive::read_go(text.as_bytes()).unwrap(), text.parse::<Value>().unwrap());
        assert_eq!(document.remarks, []);
        assert_eq!(document.backend.as_deref(), wanted["backend"].as_str());
        assert_eq!(document.exported_at.as_deref(), wanted["exported_at"].as_str());
        for (name, fields) in wanted["credentials"].as_object().unwrap() {
            assert!(document.records.contains(&credential(name, fields.clone())), "{name}");
        }
        for (name, value) in wanted["configs"].as_object().unwrap() {
            assert!(document.records.contains(&config(name, value.clone())), "{name}");
        }
        let mut count =
            wanted["credentials"].as_object().unwrap().len() + wanted["configs"].as_object().unwrap().len();
        for (name, record) in wanted["usage"].as_object().unwrap() {
            for (field, total) in record.as_object().unwrap() {
                let total = total.as_i64().or_else(|| total.as_str()?.parse().ok()).unwrap();
                assert!(document.records.contains(&usage(name, field, total)), "{name} {field}");
                count += 1;
            }
        }
        assert_eq!(document.records.len(), count);
        document
    });
    // The program's Redis backend exported counts as strings.
    let counters = |document: &GoDocument| -> Vec<Record> {
        document.records.iter().filter(|record| matches!(record, Record::Usage { .. })).cloned().collect()
    };
    assert!(!counters(&file).is_empty());
    assert_eq!(counters(&file), counters(&redis));
}

#[tokio::test]
async fn reads_what_it_writes() {
    for records in [few(), Vec::new(), few()[1..2].to_vec(), few()[2..4].to_vec(), few()[4..].to_vec()] {
        let document = written(records.clone()).await;
        let names: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["backend", "configs", "credentials", "exported_at", "usage"]);
        let read = read(&document);
        assert_eq!((&read.records, &read.remarks), (&records, &vec![]));
        assert_eq!(read.backend.as_deref(), Some("file"));
        assert_eq!(read.exported_at.as_deref(), Some("2026-01-31T12:00:00Z"));
    }
}

#[test]
fn a_whole_number_beyond_64_bits_is_named_and_not_rounded() {
    let text = r#"{"credentials":{"a":{"n":18446744073709551616},"b":{"n":18446744073709551615},"c":{"n":"18446744073709551617"}},
        "configs":{"x":-9223372036854775809,"y":18446744073709551616.0,"z":[[1,{"n":99999999999999999999}]],"18446744073709551616":1},
        "usage":{"u":{"n":18446744073709551616,"m":1}}}"#;
    let document = archive::read_go(text.as_bytes()).unwrap();
    let keys: Vec<&str> = document.records.iter().map(|record| record.key().as_str()).collect();
    assert_eq!(keys, ["b", "c", "18446744073709551616", "y", "u"]);
    let remarks: Vec<(&str, bool)> = document
        .remarks
        .iter()
        .map(|remark| {
            (&*remark.place, remark.reason.contains("whole numbers beyond 64 bits can't be stored"))
        })
        .collect();
    assert_eq!(
        remarks,
        [("credentials/a", true), ("configs/x", true), ("configs/z", true), ("usage/u/n", false)]
    );
}

#[test]
fn invalid_entries_are_named_and_the_others_are_read() {
    let document = read(&json!({
        "credentials": { "good": {}, "": {}, "list": [], "line\nbreak": {} },
        "configs": { "good": 1, "x".repeat(256): 1 },
        "usage": {
            "good": { "int": 1, "text": "-2", "float": 3.0, "half": 0.5, "null": null, "word": "many", "": 1,
                      "huge": 1e19 },
            "bad": 5,
        },
        "plans": {},
    }));
    let wanted = [
        credential("good", json!({})),
        config("good", json!(1)),
        usage("good", "float", 3),
        usage("good", "int", 1),
        usage("good", "text", -2),
    ];
    assert_eq!(document.records, wanted);
    let mut places: Vec<&str> = document.remarks.iter().map(|remark| remark.place.as_str()).collect();
    places.sort_unstable();
    let long = format!("configs/{}", "x".repeat(256));
    assert_eq!(
        places,
        [
            long.as_str(),
            "credentials/",
            "credentials/line\nbreak",
            "credentials/list",
            "plans",
            "usage/bad",
            "usage/good/",
            "usage/good/half",
            "usage/good/huge",
            "usage/good/null",
            "usage/good/word",
        ]
    );
    assert!(!format!("{:?}", document.remarks).contains("good"));
}

#[test]
fn a_duplicate_name_is_reported() {
    let text = r#"{"configs":{"a":1,"a":2}}"#;
    let document = archive::read_go(text.as_bytes()).unwrap();
    assert_eq!(document.records, [config("a", json!(1))]);
    assert_eq!(document.remarks[0].place, "configs/a");
}

#[test]
fn sections_may_be_missing_or_null() {
    assert_eq!(read(&json!({ "credentials": null, "usage": {} })).records, []);
    assert_eq!(read(&json!({ "configs": { "a": null } })).records, [config("a", json!(null))]);
}

#[test]
fn other_documents_are_refused() {
    let whole =
        json!({ "backend": "file", "credentials": { "sk-secret": { "a": "sk-secret" } } }).to_string();
    let cut = (0..whole.len()).map(|length| whole[..length].to_owned());
    let others = [
        "{}",
        "[]",
        "null",
        "1",
        r#"{"backend":"file"}"#,
        r#"{"credentials":"sk-secret"}"#,
        r#"{"credentials":[]}"#,
        r#"{"backend":["sk-secret"],"credentials":{}}"#,
    ];
    let behind = format!("{whole} x");
    for text in cut.chain(others.map(str::to_owned)).chain([behind]) {
        let error = archive::read_go(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{text}");
        assert!(!format!("{error} {error:?}").contains("sk-secret"), "{error:?}");
        assert!(error.to_string().starts_with("not a gcli2api-go document: "), "{error}");
    }
}

#[test]
fn the_two_formats_are_distinguished() {
    assert!(archive::is_export(b"{\"format\":\"gateway-storage\",\"version\":7"));
    assert!(!archive::is_go(b"{\"format\":\"gateway-storage\",\"version\":7"));
    assert!(archive::is_go(b" \n{\"backend\""));
    assert!(!archive::is_go(b"hello") && !archive::is_go(b"") && !archive::is_export(b""));
}
