//~ doesn't implement `Debug`
use std::fmt::Debug;

use gateway_storage::{Backend, Result, capability};

#[capability]
trait Labels: Backend + Debug {
    #[operation(read)]
    fn labels(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

fn main() {}
