//~ error[E0382]: borrow of moved value: `storage`
use gateway_storage::{Memory, Result, Storage};

async fn late(storage: Storage<Memory>) -> Result<()> {
    storage.close().await?;
    storage.health().await
}

fn main() {}
