//~ the trait bound `Duration: Layer` is not satisfied
use std::time::Duration;

use gateway_storage::{Memory, Storage};

fn main() {
    let _ = |storage: Storage<Memory>| storage.layer(Duration::from_secs(1));
}
