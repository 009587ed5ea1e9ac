//~ error[E0277]: `gateway_storage::File` keeps no history
//~ backends that keep one: `Git`
use gateway_storage::{File, Key, RecordKind, Storage, History};

fn needs<B: History>(_: &Storage<B>) {}

async fn history(storage: &Storage<File>, key: &Key) {
    needs(storage);
    let _ = storage.backend().history(RecordKind::Config, key, 1).await;
}

fn main() {}
