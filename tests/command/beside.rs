//! The command beside a program that has the same `File` store open: an operator beside a gateway.

use gateway_storage::{ErrorKind, File, OptionalExt, Storage};
use serde_json::json;

use super::Place;

async fn program(place: &Place, shared: &str) -> Storage<File> {
    let storage = Storage::<File>::open(format!("{}?shared={shared}", place.url())).await.unwrap();
    storage.set_config("a", json!(1)).await.unwrap();
    storage.set_credential("alice", json!({ "access_token": "old" })).await.unwrap();
    // Now they are in its cache.
    storage.get_config("a").await.unwrap();
    storage.get_credential("alice").await.unwrap();
    storage
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_command_writes_a_running_program_reads() {
    let place = Place::new();
    let program = program(&place, "multi-writer").await;
    // The program writes meanwhile, too.
    let busy = tokio::spawn({
        let program = program.clone();
        async move {
            loop {
                program.increment_usage("gateway", "requests", 1).await.unwrap();
            }
        }
    });
    for n in 0..5 {
        place.ok(&["config", "set", "a", &n.to_string()]);
        assert_eq!(program.get_config("a").await.unwrap().value(), &json!(n));
        place.ok(&["credential", "set", "alice", &json!({ "access_token": n.to_string() }).to_string()]);
        let token = program.get_credential("alice").await.unwrap();
        assert_eq!(token.get("access_token"), Some(&json!(n.to_string())));
        let id = format!("new-{n}");
        place.ok(&["credential", "set", &id, r#"{"access_token":"new"}"#]);
        assert!(program.list_credentials().await.unwrap().iter().any(|listed| listed.as_str() == id));
        program.get_credential(&id).await.expect("the program reads what the command has added");
        place.ok(&["credential", "delete", &id]);
        assert!(program.get_credential(&id).await.optional().unwrap().is_none());

        program.set_config("b", json!(n)).await.unwrap();
        assert_eq!(place.ok(&["config", "get", "b"]), format!("{n}\n"));
    }
    for line in [["doctor"].as_slice(), &["stats"], &["export", "-"], &["usage", "list"], &["ping"]] {
        assert_eq!(place.run(line).code, Some(0), "{line:?}");
    }
    assert!(!busy.is_finished(), "the program wrote all the time");
    busy.abort();
    let requests = program.get_usage("gateway").await.unwrap().get("requests").unwrap();
    assert!(requests > 0);
    program.close().await.unwrap();
}

#[tokio::test]
async fn the_command_reads_beside_a_program_that_is_the_only_writer() {
    let place = Place::new();
    let program = program(&place, "single-writer").await;
    for n in 0..3 {
        program.set_config("a", json!(n)).await.unwrap();
        assert_eq!(place.ok(&["config", "get", "a"]), format!("{n}\n"));
    }
    for line in [["doctor"].as_slice(), &["stats"], &["export", "-"], &["credential", "list"]] {
        let ended = place.run(line);
        assert_eq!(ended.code, Some(0), "{line:?}: {}", ended.err);
    }
    let refused = place.fails(5, &["config", "set", "a", "7"]);
    assert!(refused.contains("already open") && refused.contains("`shared`"), "{refused}");
    assert_eq!(place.fails_as(5, &["credential", "delete", "alice"]), ErrorKind::Busy.as_str());
    assert_eq!(program.get_config("a").await.unwrap().value(), &json!(2), "nothing was changed");
    program.close().await.unwrap();
}
