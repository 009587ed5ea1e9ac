//~ error[E0382]: use of moved value: `tx`
//~ takes ownership of the receiver `self`, which moves `tx`
use gateway_storage::{layer::Count, Memory, Result, Storage};

async fn twice(storage: Storage<Memory>) -> Result<()> {
    let tx = storage.instrumented().layer(Count::default()).begin().await?;
    tx.rollback().await?;
    tx.commit().await
}

fn main() {}
