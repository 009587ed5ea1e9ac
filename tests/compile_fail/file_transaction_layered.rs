//~ error[E0277]: `gateway_storage::File` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{Count, File, Storage, Timeout};

async fn begin(storage: Storage<File>) {
    let _ = storage.instrumented().layer(Count::default()).layer(Timeout::default()).begin().await;
}

fn main() {}
