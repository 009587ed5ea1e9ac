//~ error[E0382]: use of moved value: `tx`
use gateway_storage::{Postgres, Result, Storage};

async fn twice(storage: &Storage<Postgres>) -> Result<()> {
    let tx = storage.begin().await?;
    tx.commit().await?;
    tx.rollback().await
}

fn main() {}
