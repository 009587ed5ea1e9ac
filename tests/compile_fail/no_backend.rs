//~ error[E0277]: `String` is not a storage backend
use gateway_storage::{Storage, Trace};

fn main() {
    let _ = Storage::new(String::new()).layer(Trace);
}
