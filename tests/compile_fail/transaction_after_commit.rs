//~ error[E0382]: borrow of moved value: `tx`
//~ takes ownership of the receiver `self`, which moves `tx`
use gateway_storage::{Key, Memory, Result, Storage};

async fn late(storage: &Storage<Memory>, id: &Key) -> Result<()> {
    let mut tx = storage.begin().await?;
    tx.commit().await?;
    tx.delete_credential(id).await
}

fn main() {}
