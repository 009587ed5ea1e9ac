//~ error[E0277]: `Git` has no transactions
//~ backends with transactions: `Memory`, `MongoDb`, `Postgres`
use gateway_storage::{Git, Storage};

async fn begin(storage: &Storage<Git>) {
    let _ = storage.begin().await;
}

fn main() {}
