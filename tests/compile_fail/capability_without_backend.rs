//~ error: a capability stands on a backend: write `trait Labels: Backend`
use gateway_storage::{Result, capability};

#[capability]
trait Labels {
    #[operation(read)]
    fn labels(&self) -> impl Future<Output = Result<Vec<String>>> + Send;
}

fn main() {}
