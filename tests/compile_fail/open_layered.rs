//~ can't be opened from a configuration
//~ open the bare backend, `Storage::<File>::open(..)`, then add layers with `.layer(..)`
use gateway_storage::{File, Layered, Storage, Trace};

async fn open() {
    let _ = Storage::<Layered<Trace, File>>::open("file:./data").await;
}

fn main() {}
