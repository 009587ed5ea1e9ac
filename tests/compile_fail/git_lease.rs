//~ error[E0277]: `Git` has no leases
//~ backends with leases: `File`, `Memory`, `MongoDb`, `Postgres`, `Redis`
use gateway_storage::{Git, Storage, lease::Lease};
use std::time::Duration;

async fn renew(storage: &Storage<Git>, lease: &Lease) {
    let _ = storage.renew_lease(lease, Duration::from_secs(30)).await;
}

fn main() {}
