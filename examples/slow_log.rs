//! A layer of your own, which prints slow operations. It is written once and covers every operation.
//!
//!     cargo run --example slow_log

use std::time::{Duration, Instant};

use gateway_storage::{
    Memory, Result, Storage,
    layer::{Call, Fault, Layer, Receiver},
};
use serde_json::json;

#[derive(Clone)]
struct SlowLog {
    over: Duration,
}

impl Layer for SlowLog {
    async fn around<R: Receiver, C: Call<R>>(&self, on: R, call: C) -> Result<C::Output> {
        let start = Instant::now();
        let result = call.run(on).await;
        let took = start.elapsed();
        if took > self.over {
            let outcome = result.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
            println!("slow: {} took {took:.1?} ({outcome})", C::OPERATION.name);
        }
        result
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // For the example, one operation in ten is slow.
    let delays = Fault::seeded(1).delays(0.1, Duration::from_millis(20)..=Duration::from_millis(80));
    let storage = Storage::<Memory>::open("memory:").await?.layer(delays);

    let storage = storage.layer(SlowLog { over: Duration::from_millis(50) });
    for n in 0..100 {
        storage.set_config("retries", json!(n)).await?;
        storage.get_config("retries").await?;
    }
    storage.close().await
}
