//! Conditional writes compared with plain ones on the same store, in one run, as ratios.
//!
//! `cargo bench --bench conditional --features full` starts a `redis-server`, a `postgres` and a `mongod` and
//! prints, after criterion's report, one table (with `-- Redis` only that backend's rows).

mod contest;

use std::sync::Arc;

use contest::{Contender, Contest, credential, of, on_tasks};
use gateway_storage::{
    Credential, File, Key, MongoDb, Postgres, Redis, Storage,
    revision::{Condition, Conditional, Revision},
};
use testkit::servers::{mongodb::ReplicaSet, postgres, redis};
use tokio::sync::Mutex;

const RECORDS: u64 = 1000;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (redis, mongodb) = (redis::Server::start(&["--appendonly", "no"]), ReplicaSet::start(1));
    let [postgres, durable] = [&[][..], &["fsync=on"]].map(postgres::Server::start);
    let mut contest =
        Contest::new("Conditional writes. The ratio is how many times faster the conditional one is.");
    let runtime = contest.runtime.clone();
    let url = format!("file:{}/data", folder.path().display());
    compare(&mut contest, "File", &runtime.block_on(Storage::<File>::open(&*url)).unwrap());
    compare(&mut contest, "Redis", &runtime.block_on(Storage::<Redis>::open(&*redis.url())).unwrap());
    for (name, server) in [("Postgres without fsync", &postgres), ("Postgres", &durable)] {
        compare(&mut contest, name, &runtime.block_on(Storage::<Postgres>::open(&*server.url())).unwrap());
    }
    compare(
        &mut contest,
        "MongoDb",
        &runtime.block_on(Storage::<MongoDb>::open(&*mongodb.url("bench"))).unwrap(),
    );
    contest.print();
}

/// A record, and its revision. Locked while it is written, so that no write is refused.
type Stored = (Key, Mutex<Revision>);

fn compare<B: Conditional>(contest: &mut Contest, name: &str, storage: &Storage<B>) {
    let runtime = &contest.runtime.clone();
    let credential = Credential::new(credential()).unwrap();
    let records: Vec<Stored> = runtime.block_on(async {
        let mut records = Vec::new();
        for n in 0..RECORDS {
            let id = Key::new(&format!("user+{n}@example.com")).unwrap();
            let revision =
                storage.set_credential_if(&id, credential.clone(), Condition::Absent).await.unwrap();
            records.push((id, Mutex::new(revision)));
        }
        records
    });
    let shared = Arc::new((storage.clone(), records, credential));
    for tasks in [1, 64] {
        let contender = |who, is_conditional: bool| -> Contender<'_> {
            let shared = shared.clone();
            let set = move |n: u64| {
                let shared = shared.clone();
                async move {
                    let (storage, records, credential) = &*shared;
                    let (id, revision) = &records[(n % RECORDS) as usize];
                    let mut revision = revision.lock().await;
                    if is_conditional {
                        let condition = Condition::Unchanged(*revision);
                        *revision =
                            storage.set_credential_if(id, credential.clone(), condition).await.unwrap();
                    } else {
                        storage.set_credential(id, credential.clone()).await.unwrap();
                    }
                }
            };
            (who, Box::new(move |count| on_tasks(runtime, tasks, count, set.clone())))
        };
        let contenders = vec![contender("set if unchanged", true), contender("set", false)];
        contest.row(&format!("{name}, {}", of(tasks)), contenders);
    }
}
