//~ error[E0277]: `String` is not a storage backend
use gateway_storage::{layer::Count, Storage};

fn main() {
    let _ = Storage::new(String::new()).layer(Count::default());
}
