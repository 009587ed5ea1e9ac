//! A process that is stopped (SIGSTOP) in the middle of a commit, in a store to which another one writes.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use gateway_storage::{Credential, ErrorKind, File, Key, OptionalExt, Outcome, Storage};
use serde_json::json;

use crate::{report, runtime};

/// Enough for a commit to take long.
const BATCH: usize = 2_000;

/// Writes large batches without end.
pub(crate) fn writer(url: &str) {
    runtime().block_on(async {
        let storage = Storage::<File>::open(url).await.unwrap();
        for n in 0_u64.. {
            let credential = Credential::try_from(json!({ "n": n, "text": "x".repeat(200) })).unwrap();
            let ids = (0..BATCH).map(|at| Key::new(&format!("large-{at}")).unwrap());
            let items: Vec<_> = ids.map(|id| (id, credential.clone())).collect();
            storage.set_credentials(&items).await.unwrap().complete().unwrap();
            report("batch");
        }
    });
}

fn signal(process: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &process.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// What is done while the other process is stopped.
async fn beside_a_stopped_process(storage: &Storage<File>) -> bool {
    let hurried = storage.with_deadline(Duration::from_millis(200));
    let Err(error) = hurried.set_config("withdrawn", json!(1)).await else {
        // It was stopped between two commits.
        storage.delete_config("withdrawn").await.optional().unwrap();
        return false;
    };
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error}");
    for _ in 0..2 {
        assert_eq!(storage.get_config("a").await.unwrap().value(), &json!("before"), "reads go on");
        assert_eq!(storage.list_configs().await.unwrap().len(), 1);
        assert_eq!(storage.list_credentials().await.unwrap().len(), BATCH);
        let ids = [Key::new("large-0").unwrap(), Key::new("large-1").unwrap()];
        let found = storage.get_credentials(&ids).await.unwrap();
        assert_eq!(found.values[&ids[0]].get("n"), found.values[&ids[1]].get("n"));
    }
    let error = hurried.increment_usage("withdrawn", "n", 1).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error}");
    true
}

pub(crate) fn writes_wait_and_reads_do_not() {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("file:{}", folder.path().join("store").display());
    runtime().block_on(async {
        let storage = Storage::<File>::open(url.as_str()).await.unwrap();
        storage.set_config("a", json!("before")).await.unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--large", &url])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        lines.next().expect("it writes").unwrap();
        let (mut random, mut stops) = (fastrand::Rng::new(), 0);
        loop {
            stops += 1;
            assert!(stops < 500, "it was never stopped in a commit");
            std::thread::sleep(Duration::from_micros(random.u64(..20_000)));
            signal(&process, "-STOP");
            let is_in_commit = beside_a_stopped_process(&storage).await;
            signal(&process, "-CONT");
            if is_in_commit {
                break;
            }
        }
        println!("stopped in a commit after {stops} stops");
        storage.set_config("a", json!("after")).await.expect("writes go on");
        storage.health().await.unwrap();
        assert_eq!(storage.list_configs().await.unwrap().len(), 1, "what timed out was withdrawn");
        assert!(storage.get_usage("withdrawn").await.optional().unwrap().is_none());
        // It has gone on, too.
        (0..50).for_each(|_| drop(lines.next().expect("it writes").unwrap()));
        process.kill().unwrap();
        process.wait().unwrap();
        storage.close().await.unwrap();
    });
}
