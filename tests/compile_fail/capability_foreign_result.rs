//~ expected `gateway_storage::Error`, found `std::io::Error`
use std::io::Result;

use gateway_storage::{Backend, capability};

#[capability]
trait Labels: Backend {
    #[operation(read)]
    fn labels(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

fn main() {}
