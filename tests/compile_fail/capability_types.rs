//~ the trait bound `Once: Clone` is not satisfied
//~ cannot be sent between threads safely
use std::rc::Rc;

use gateway_storage::{Backend, Result, capability};

struct Once;

#[capability]
trait Types: Backend {
    #[operation(write)]
    fn put(&self, once: Once) -> impl Future<Output = Result<()>> + Send;

    #[operation(read)]
    fn get(&self) -> impl Future<Output = Result<Rc<u8>>> + Send;
}

fn main() {}
