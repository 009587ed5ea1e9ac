//~ error[E0277]: `gateway_storage::File` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{layer::{Count, Timeout}, File, Storage};

async fn begin(storage: Storage<File>) {
    let _ = storage.instrumented().layer(Count::default()).layer(Timeout::default()).begin().await;
}

fn main() {}
