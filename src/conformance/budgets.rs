//! The contract of `increment_within`.

use super::{TASKS, concurrently, fails_about, key, must, ok, same};
use crate::{ErrorKind, OptionalExt, Storage, UsageStore, model::Within};

/// Asserts every bullet of `increment_within`.
pub(super) async fn budgets<B: UsageStore>(storage: &Storage<B>) {
    must("increment_within: counts up to the limit, and no further", limits(storage.clone())).await;
    must("increment_within: a refusal changes nothing and makes nothing", refusals(storage.clone())).await;
    must("increment_within: any i64, to the last digit", extremes(storage.clone())).await;
    must(
        "increment_within: never over the limit concurrently, refused only if it would be",
        both(storage.clone()),
    )
    .await;
}

async fn within<B: UsageStore>(storage: &Storage<B>, field: &str, delta: i64, limit: i64) -> Within {
    ok("increment_within", storage.increment_within("budget", field, delta, limit).await)
}

async fn limits<B: UsageStore>(storage: Storage<B>) {
    use Within::{Counted, Refused};
    for (delta, limit, wanted) in [
        (60, 100, Counted(60)),
        (41, 100, Refused(60)),
        (40, 100, Counted(100)),
        (1, 100, Refused(100)),
        (0, 100, Counted(100)),
        (0, 99, Refused(100)),
        (-30, 100, Counted(70)),
        (-1, 50, Refused(70)),
        (-20, 50, Counted(50)),
        (-60, 50, Counted(-10)),
        (5, -5, Counted(-5)),
        (1, -5, Refused(-5)),
    ] {
        let what = format!("{delta} within {limit}");
        same(what, wanted, within(&storage, "tokens", delta, limit).await);
        let count = ok("get_counter", storage.get_counter("budget", "tokens").await);
        same("the counter", wanted.total(), count);
    }
    same("another field", Counted(7), within(&storage, "requests", 7, 7).await);
    same("the total after increment_usage", -4, add(&storage, 1).await);
    ok("reset", storage.reset_usage("budget").await);
}

async fn add<B: UsageStore>(storage: &Storage<B>, delta: i64) -> i64 {
    ok("increment_usage", storage.increment_usage("budget", "tokens", delta).await)
}

async fn refusals<B: UsageStore>(storage: Storage<B>) {
    for (delta, limit) in [(1, 0), (0, -1), (-1, -2), (8, 7)] {
        let what = format!("{delta} within {limit}, of a missing counter");
        same(what, Within::Refused(0), within(&storage, "tokens", delta, limit).await);
        let found = ok("get_usage", storage.get_usage("budget").await.optional());
        same("the record after a refusal", None, found);
    }
    same("another counter", Within::Counted(1), within(&storage, "other", 1, 1).await);
    same("a refusal beside it", Within::Refused(0), within(&storage, "tokens", 2, 1).await);
    let fields = ok("get_usage", storage.get_usage("budget").await);
    same("the fields", vec!["other"], fields.iter().map(|(field, _)| field.as_str()).collect());
    same("a zero", Within::Counted(0), within(&storage, "zero", 0, 0).await);
    let fields = ok("get_usage", storage.get_usage("budget").await);
    same("the number of fields after a zero", 2, fields.len());
    ok("reset", storage.reset_usage("budget").await);
}

async fn extremes<B: UsageStore>(storage: Storage<B>) {
    let edge = 1_i64 << 53;
    let numbers = [i64::MIN, i64::MIN + 1, -edge - 1, -1, 0, 1, edge, edge + 1, i64::MAX - 1, i64::MAX];
    for before in numbers {
        let mut total = add(&storage, before).await;
        for delta in numbers {
            for limit in numbers {
                let what = format!("{delta} within {limit}, of {total}");
                let result = storage.increment_within("budget", "tokens", delta, limit).await;
                match Within::decide(&key("budget"), total, delta, limit) {
                    Ok(wanted) => {
                        same(what, wanted, ok("increment_within", result));
                        total = wanted.total();
                    }
                    Err(_) => fails_about(what, ErrorKind::Overflow, &key("budget"), result),
                }
            }
        }
        same("the counter", total, ok("get_counter", storage.get_counter("budget", "tokens").await));
        ok("reset", storage.reset_usage("budget").await);
    }
}

/// Each task adds its own number, so that a small one may still fit where a large one does not.
async fn both<B: UsageStore>(storage: Storage<B>) {
    const LIMIT: i64 = 1_000;
    let spent = concurrently((1..=TASKS as i64).map(|delta| spend(storage.clone(), delta, LIMIT))).await;
    let spent: i64 = spent.into_iter().sum();
    same("the counter", spent, ok("get_counter", storage.get_counter("budget", "tokens").await));
    same("the whole budget, since 1 fits always", LIMIT, spent);
    ok("reset", storage.reset_usage("budget").await);
}

/// Spends until a call is refused. Returns what was counted.
async fn spend<B: UsageStore>(storage: Storage<B>, delta: i64, limit: i64) -> i64 {
    let mut spent = 0;
    loop {
        match within(&storage, "tokens", delta, limit).await {
            Within::Counted(total) => {
                spent += delta;
                assert!((spent..=limit).contains(&total), "a total of {total} was counted within {limit}");
            }
            Within::Refused(total) => {
                assert!(total + delta > limit, "{delta} was refused at {total} of {limit}");
                return spent;
            }
        }
    }
}
