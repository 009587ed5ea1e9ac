//! The MongoDB backend compared with direct use of the driver, in one run, as ratios.
//!
//! `cargo bench --bench mongodb --features mongodb` starts a replica set of one `mongod` and prints, after
//! criterion's report, one table (with `-- get` only the rows whose names contain "get"). The driver is used
//! as its documentation shows: a collection of a serde type, with the same concerns and pool size as ours.

mod contest;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use contest::{Contender, Contest, credential, of, on_tasks};
use futures_util::TryStreamExt;
use gateway_storage::{Credential, Increment, Key, MongoDb, Storage};
use mongodb::{
    Client, Collection,
    bson::{Bson, Document, doc},
    options::{ClientOptions, ReadConcern, ReturnDocument, WriteConcern},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use testkit::servers::mongodb::ReplicaSet;

const RECORDS: u64 = 1000;

/// The document that an application would store.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    _id: String,
    value: Map<String, Value>,
}

fn main() {
    let set = ReplicaSet::start(1);
    let mut contest = Contest::new("MongoDB. The ratio is how many times faster ours is.");
    let bench = Bench::new(&contest, &set);
    for tasks in [1, 64] {
        bench.get(&mut contest, tasks);
        bench.set(&mut contest, tasks);
        bench.increment(&mut contest, tasks);
    }
    bench.batches(&mut contest);
    contest.print();
}

struct Bench {
    runtime: Arc<tokio::runtime::Runtime>,
    ours: Storage<MongoDb>,
    driver: Client,
    theirs: Collection<Stored>,
    ids: Arc<Vec<Key>>,
    credential: Credential,
}

impl Bench {
    fn new(contest: &Contest, set: &ReplicaSet) -> Self {
        let runtime = contest.runtime.clone();
        let ids: Arc<Vec<Key>> =
            Arc::new((0..RECORDS).map(|n| Key::new(&format!("user+{n}@example.com")).unwrap()).collect());
        let (ours, driver) = runtime.block_on(async {
            let ours = Storage::<MongoDb>::open(set.url("ours").as_str()).await.unwrap();
            let mut options = ClientOptions::parse(set.url("theirs")).await.unwrap();
            options.max_pool_size = Some(10);
            options.max_connecting = Some(10);
            options.read_concern = Some(ReadConcern::majority());
            let mut concern = WriteConcern::majority();
            concern.journal = Some(true);
            options.write_concern = Some(concern);
            (ours.with_deadline(Duration::from_secs(60)), Client::with_options(options).unwrap())
        });
        let theirs = driver.database("theirs").collection("credentials");
        let credential = Credential::try_from(Value::Object(credential())).unwrap();
        let bench = Self { runtime, ours, driver, theirs, ids, credential };
        bench.runtime.block_on(async {
            let all: Vec<_> = bench.ids.iter().map(|id| (id.clone(), bench.credential.clone())).collect();
            assert!(bench.ours.set_credentials(&all).await.unwrap().is_complete());
            let value = bench.credential.fields();
            let all = bench.ids.iter().map(|id| Stored { _id: id.as_str().to_owned(), value: value.clone() });
            bench.theirs.insert_many(all).await.unwrap();
        });
        bench
    }

    fn contender<'c, F, T>(
        &'c self,
        who: &'static str,
        tasks: u64,
        operation: impl Fn(u64) -> F + Clone + Send + 'static,
    ) -> Contender<'c>
    where
        F: Future<Output = T> + Send + 'static,
    {
        (who, Box::new(move |count| on_tasks(&self.runtime, tasks, count, operation.clone())))
    }

    fn get(&self, contest: &mut Contest, tasks: u64) {
        let ours = Arc::new((self.ours.clone(), self.ids.clone()));
        let theirs = Arc::new((self.theirs.clone(), self.ids.clone()));
        let mine = self.contender("ours", tasks, move |n| {
            let ours = ours.clone();
            async move { ours.0.get_credential(&ours.1[(n % RECORDS) as usize]).await.unwrap() }
        });
        let raw = self.contender("driver", tasks, move |n| {
            let theirs = theirs.clone();
            async move {
                let id = theirs.1[(n % RECORDS) as usize].as_str();
                theirs.0.find_one(doc! { "_id": id }).await.unwrap().unwrap().value
            }
        });
        contest.row(&format!("get, {}", of(tasks)), vec![mine, raw]);
    }

    fn set(&self, contest: &mut Contest, tasks: u64) {
        // Each value is different, because the server does not write a value that is already stored.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let fresh = |credential: &Credential| {
            credential.with("n", NEXT.fetch_add(1, Ordering::Relaxed)).expect("it is not too large")
        };
        let ours = Arc::new((self.ours.clone(), self.ids.clone(), self.credential.clone()));
        let theirs = Arc::new((self.theirs.clone(), self.ids.clone(), self.credential.clone()));
        let mine = self.contender("ours", tasks, move |n| {
            let ours = ours.clone();
            async move {
                let id = &ours.1[(n % RECORDS) as usize];
                ours.0.set_credential(id, fresh(&ours.2)).await.unwrap();
            }
        });
        let raw = self.contender("driver", tasks, move |n| {
            let theirs = theirs.clone();
            async move {
                let id = theirs.1[(n % RECORDS) as usize].as_str();
                let value = fresh(&theirs.2).fields().clone();
                let stored = Stored { _id: id.to_owned(), value };
                theirs.0.replace_one(doc! { "_id": id }, stored).upsert(true).await.unwrap();
            }
        });
        contest.row(&format!("set, {}", of(tasks)), vec![mine, raw]);
    }

    fn increment(&self, contest: &mut Contest, tasks: u64) {
        let ours = Arc::new((self.ours.clone(), self.ids.clone(), Key::new("requests").unwrap()));
        let usage: Collection<Document> = self.driver.database("theirs").collection("usage");
        let theirs = Arc::new((usage, self.ids.clone()));
        let mine = self.contender("ours", tasks, move |n| {
            let ours = ours.clone();
            async move { ours.0.increment_usage(&ours.1[(n % RECORDS) as usize], &ours.2, 1).await.unwrap() }
        });
        let raw = self.contender("driver", tasks, move |n| {
            let theirs = theirs.clone();
            async move {
                let id = theirs.1[(n % RECORDS) as usize].as_str();
                let found = theirs
                    .0
                    .find_one_and_update(doc! { "_id": id }, doc! { "$inc": { "counts.requests": 1_i64 } })
                    .upsert(true)
                    .return_document(ReturnDocument::After)
                    .projection(doc! { "counts.requests": 1 });
                found.await.unwrap().unwrap().get_document("counts").unwrap().get_i64("requests").unwrap()
            }
        });
        contest.row(&format!("increment, {}", of(tasks)), vec![mine, raw]);
    }

    fn batches(&self, contest: &mut Contest) {
        let all: Arc<Vec<_>> =
            Arc::new(self.ids.iter().map(|id| (id.clone(), self.credential.clone())).collect());
        let ours = self.ours.clone();
        let mine = self.contender("ours", 1, move |_| {
            let (ours, all) = (ours.clone(), all.clone());
            async move { assert!(ours.set_credentials(&*all).await.unwrap().is_complete()) }
        });
        let (database, ids, fields) =
            (self.driver.database("theirs"), self.ids.clone(), self.credential.fields().clone());
        let raw = self.contender("driver, update command", 1, move |_| {
            let (database, ids, fields) = (database.clone(), ids.clone(), fields.clone());
            async move {
                let statement = |id: &Key| {
                    let value = mongodb::bson::serialize_to_bson(&fields).unwrap();
                    doc! { "q": { "_id": id.as_str() }, "u": { "value": value }, "upsert": true }
                };
                let updates: Vec<Bson> = ids.iter().map(|id| Bson::Document(statement(id))).collect();
                let command = doc! { "update": "credentials", "updates": updates, "ordered": false,
                "writeConcern": { "w": "majority", "j": true } };
                let reply = database.run_command(command).await.unwrap();
                assert!(reply.get("writeErrors").is_none());
            }
        });
        contest.row("set of 1000", vec![mine, raw]);

        let (ours, ids) = (self.ours.clone(), self.ids.clone());
        let mine = self.contender("ours", 1, move |_| {
            let (ours, ids) = (ours.clone(), ids.clone());
            async move { ours.get_credentials(&*ids).await.unwrap() }
        });
        let theirs = Arc::new((self.theirs.clone(), self.ids.clone()));
        let raw = self.contender("driver, find", 1, move |_| {
            let theirs = theirs.clone();
            async move {
                let ids: Vec<&str> = theirs.1.iter().map(Key::as_str).collect();
                let found = theirs.0.find(doc! { "_id": { "$in": ids } }).batch_size(1000).await.unwrap();
                let found: Vec<Stored> = found.try_collect().await.unwrap();
                found.into_iter().map(|stored| (stored._id, stored.value)).collect::<BTreeMap<_, _>>()
            }
        });
        contest.row("get of 1000", vec![mine, raw]);

        let field = Key::new("requests").unwrap();
        let steps: Arc<Vec<_>> = Arc::new(self.ids.iter().map(|id| Increment::new(id, &field, 1)).collect());
        let ours = self.ours.clone();
        let mine = self.contender("ours", 1, move |_| {
            let (ours, steps) = (ours.clone(), steps.clone());
            async move { assert!(ours.increment_many(&steps).await.unwrap().is_complete()) }
        });
        let (database, ids) = (self.driver.database("theirs"), self.ids.clone());
        let raw = self.contender("driver, update command", 1, move |_| {
            let (database, ids) = (database.clone(), ids.clone());
            async move {
                let statement = |id: &Key| {
                    doc! { "q": { "_id": id.as_str() }, "u": { "$inc": { "counts.requests": 1_i64 } }, "upsert": true }
                };
                let updates: Vec<Bson> = ids.iter().map(|id| Bson::Document(statement(id))).collect();
                let command = doc! { "update": "usage", "updates": updates, "ordered": false,
                    "writeConcern": { "w": "majority", "j": true } };
                let reply = database.run_command(command).await.unwrap();
                assert!(reply.get("writeErrors").is_none());
            }
        });
        contest.row("increment of 1000", vec![mine, raw]);
    }
}
