//~ the trait bound `u8: IntoKey` is not satisfied
use gateway_storage::{Memory, Storage};

async fn get(storage: &Storage<Memory>) {
    let _ = storage.get_config(7_u8).await;
}

fn main() {}
