//! What the tests of leases in `MongoDb` and `Postgres` share.

use std::time::Duration;

use gateway_storage::{
    Result, Storage,
    lease::{Claim, Holder, Lease, Leases},
};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) async fn claim<B: Leases>(storage: &Storage<B>, name: &str, holder: &Holder) -> Result<Claim> {
    storage.claim_lease(name, holder, MINUTE).await
}

/// A new holder's lease.
pub(crate) async fn claimed<B: Leases>(storage: &Storage<B>, name: &str) -> Lease {
    match claim(storage, name, &Holder::random()).await.unwrap() {
        Claim::Yours(lease) => lease,
        Claim::Theirs { left } => panic!("another holder has it for {left:?}"),
    }
}

/// Of 16 tasks that claim one lease through these handles one gets it. The time that is left to the others is
/// half a minute to `longest`.
pub(crate) async fn winner<B: Leases>(handles: &[Storage<B>; 2], longest: Duration) -> Lease {
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let storage = handles[n % 2].clone();
            tokio::spawn(async move { claim(&storage, "a", &Holder::random()).await.unwrap() })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Claim::Yours(lease) => winners.push(lease),
            Claim::Theirs { left } => assert!(left > MINUTE / 2 && left <= longest, "{left:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    winners.remove(0)
}
