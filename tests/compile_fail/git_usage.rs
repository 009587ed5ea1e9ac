//~ error[E0277]: `Git` cannot count usage
//~ backends that count usage: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`
use gateway_storage::{Git, Storage};

async fn count(storage: &Storage<Git>) {
    let _ = storage.increment_usage("k", "requests", 1).await;
}

fn main() {}
