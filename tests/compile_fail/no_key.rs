//~ `u8` is not a key
//~ a key is a `Key` or `&Key`, or a string
use gateway_storage::{Memory, Storage};

async fn get(storage: &Storage<Memory>) {
    let _ = storage.get_config(7_u8).await;
}

fn main() {}
