//~ the wrapper `gateway_storage::scope::Scope` does not have the capability `History`
use gateway_storage::{scope::Scoped, Git, History, Storage};

fn needs<B: History>(_: &Storage<B>) {}

fn main() {
    let _ = |storage: Storage<Scoped<Git>>| needs(&storage);
}
