//~ error[E0277]: `gateway_storage::File` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{Count, File, Storage, Trace};

async fn begin(storage: Storage<File>) {
    let _ = storage.layer(Trace).layer(Count::default()).layer(Trace).begin().await;
}

fn main() {}
