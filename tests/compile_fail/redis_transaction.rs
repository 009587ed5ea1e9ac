//~ error[E0277]: `Redis` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{Redis, Storage};

async fn begin(storage: &Storage<Redis>) {
    let _ = storage.begin().await;
}

fn main() {}
