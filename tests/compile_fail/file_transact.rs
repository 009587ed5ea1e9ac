//~ error[E0277]: `gateway_storage::File` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{File, Result, Storage, transact};

async fn run(storage: &Storage<File>) -> Result<()> {
    transact!(storage, |_tx| { Ok(()) })
}

fn main() {}
