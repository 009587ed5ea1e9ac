//~ a key has 1 to 255 bytes and no control characters

use gateway_storage::Key;

const LINE_BREAK: Key = Key::from_static("line\nbreak");

fn main() {
    let _ = LINE_BREAK;
}
