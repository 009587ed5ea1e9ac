//~ can't be opened from options
//~ open the bare backend, `Storage::<File>::open(..)`, then add layers with `.layer(..)`
use gateway_storage::{layer::{Layered, Stack}, File, Storage};

async fn open() {
    let _ = Storage::<Layered<Stack, File>>::open("file:./data").await;
}

fn main() {}
