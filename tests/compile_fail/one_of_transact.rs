//~ error[E0277]: `Redis` has no transactions
//~ backends with transactions: `Memory`, `MongoDb`, `Postgres`
use gateway_storage::{one_of, Memory, Postgres, Redis, Result, Storage};

async fn begin(storage: Storage<one_of!(Memory, Redis, Postgres)>) -> Result<()> {
    storage.begin().await?;
    Ok(())
}

fn main() {}
