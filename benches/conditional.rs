//! Conditional writes compared with plain ones on the same store, in one run, as ratios.
//!
//! `cargo bench --bench conditional --features full` starts a `redis-server`, a `postgres` and a `mongod` and
//! prints, after criterion's report, one table (with `-- Redis` only that backend's rows).

mod contest;

use std::sync::Arc;

use contest::{Contender, Contest, on_tasks};
use gateway_storage::{
    Credential, File, Key, MongoDb, Postgres, Redis, Storage,
    revision::{Condition, Conditional, Revision},
};
use serde_json::json;
use testkit::servers::{mongodb::ReplicaSet, postgres, redis};
use tokio::sync::Mutex;

const RECORDS: u64 = 1000;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (redis, mongodb) = (redis::Server::start(&["--appendonly", "no"]), ReplicaSet::start(1));
    let postgres = postgres::Server::start(&[]);
    let mut contest =
        Contest::new("Conditional writes. The ratio is how many times faster the conditional one is.");
    let runtime = contest.runtime.clone();
    let url = format!("file:{}/data", folder.path().display());
    compare(&mut contest, "File", &runtime.block_on(Storage::<File>::open(&*url)).unwrap());
    compare(&mut contest, "Redis", &runtime.block_on(Storage::<Redis>::open(&*redis.url())).unwrap());
    compare(
        &mut contest,
        "Postgres",
        &runtime.block_on(Storage::<Postgres>::open(&*postgres.url())).unwrap(),
    );
    compare(
        &mut contest,
        "MongoDb",
        &runtime.block_on(Storage::<MongoDb>::open(&*mongodb.url("bench"))).unwrap(),
    );
    contest.print();
}

/// An OAuth credential of some 600 bytes of JSON.
fn credential() -> Credential {
    let fields = json!({
        "access_token": "x".repeat(218), "refresh_token": "y".repeat(103), "client_id": "z".repeat(72),
        "client_secret": "GOCSPX-0123456789", "expiry": "2026-12-31T23:59:59Z", "project_id": "project-0001",
        "token_uri": "https://oauth2.googleapis.com/token", "scope": "cloud-platform",
    });
    fields.try_into().unwrap()
}

/// A record, and its revision. Locked while it is written, so that no write is refused.
type Stored = (Key, Mutex<Revision>);

fn compare<B: Conditional>(contest: &mut Contest, name: &str, storage: &Storage<B>) {
    let runtime = contest.runtime.clone();
    let records: Vec<Stored> = runtime.block_on(async {
        let mut records = Vec::new();
        for n in 0..RECORDS {
            let id = Key::new(&format!("user+{n}@example.com")).unwrap();
            let revision = storage.set_credential_if(&id, credential(), Condition::Absent).await.unwrap();
            records.push((id, Mutex::new(revision)));
        }
        records
    });
    let shared = Arc::new((storage.clone(), records, credential()));
    for tasks in [1, 64] {
        let mine = {
            let shared = shared.clone();
            move |n: u64| {
                let shared = shared.clone();
                async move {
                    let (storage, records, credential) = &*shared;
                    let (id, revision) = &records[(n % RECORDS) as usize];
                    let mut revision = revision.lock().await;
                    let condition = Condition::Unchanged(*revision);
                    *revision = storage.set_credential_if(id, credential.clone(), condition).await.unwrap();
                }
            }
        };
        let plain = {
            let shared = shared.clone();
            move |n: u64| {
                let shared = shared.clone();
                async move {
                    let (storage, records, credential) = &*shared;
                    let (id, revision) = &records[(n % RECORDS) as usize];
                    let _locked = revision.lock().await;
                    storage.set_credential(id, credential.clone()).await.unwrap();
                }
            }
        };
        let contenders: Vec<Contender<'_>> = vec![
            ("set if unchanged", Box::new(|count| on_tasks(&runtime, tasks, count, mine.clone()))),
            ("set", Box::new(|count| on_tasks(&runtime, tasks, count, plain.clone()))),
        ];
        contest.row(&format!("{name}, {tasks} tasks"), contenders);
    }
}
