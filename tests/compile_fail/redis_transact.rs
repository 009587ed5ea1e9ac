//~ error[E0277]: `Redis` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{Redis, Result, Storage, transact};

async fn run(storage: &Storage<Redis>) -> Result<()> {
    transact!(storage, |_tx| { Ok(()) })
}

fn main() {}
