//~ error[E0382]: use of moved value: `tx`
use gateway_storage::{MongoDb, Result, Storage};

async fn twice(storage: &Storage<MongoDb>) -> Result<()> {
    let tx = storage.begin().await?;
    tx.commit().await?;
    tx.rollback().await
}

fn main() {}
