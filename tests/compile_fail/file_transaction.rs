//~ error[E0277]: `gateway_storage::File` has no transactions
//~ backends with transactions: `Memory`
use gateway_storage::{File, Storage, Transactional};

fn needs<B: Transactional>(_: &Storage<B>) {}

async fn begin(storage: &Storage<File>) {
    needs(storage);
    let _ = storage.begin().await;
}

fn main() {}
