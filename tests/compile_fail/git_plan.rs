//~ error[E0277]: `Git` cannot apply config batches
//~ backends that can: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`
use gateway_storage::{plan::{ApplyOptions, Plan}, Git, Storage};

async fn apply(storage: &Storage<Git>, plan: &Plan) {
    let _ = storage.apply_plan("k", plan, &ApplyOptions::default()).await;
}

fn main() {}
