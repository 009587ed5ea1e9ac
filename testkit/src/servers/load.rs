//! Increments counters while a test causes faults, on any backend with counters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_storage::{Outcome, Result, Storage, UsageStore};
use tokio::task::JoinHandle;

/// Tasks that count, and the number of increments that were acknowledged to each.
pub struct Load {
    running: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(i64, i64, Instant)>>,
}

impl Load {
    /// Starts the tasks.
    pub fn start<B: UsageStore>(storage: &Storage<B>) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let tasks = (0..16)
            .map(|task| {
                let (storage, running) = (storage.clone(), running.clone());
                tokio::spawn(async move {
                    let (mut sure, mut unsure, mut last) = (0, 0, Instant::now());
                    while running.load(Ordering::SeqCst) {
                        match storage.increment_usage("total", format!("n{}", task % 4), 1).await {
                            Ok(_) => (sure, last) = (sure + 1, Instant::now()),
                            Err(error) => {
                                assert!(error.is_retryable(), "{error:?}");
                                unsure += i64::from(error.outcome() == Outcome::Unknown);
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                        }
                    }
                    (sure, unsure, last)
                })
            })
            .collect();
        Self { running, tasks }
    }

    /// Asserts that every acknowledged increment is stored, and that every task succeeded again after the
    /// fault.
    pub async fn check<B: UsageStore>(self, storage: &Storage<B>, returned: Instant) -> Result<()> {
        self.running.store(false, Ordering::SeqCst);
        let (mut sure, mut unsure) = (0, 0);
        for task in self.tasks {
            let (task_sure, task_unsure, last) = task.await.unwrap();
            assert!(last > returned, "a task never got through again");
            (sure, unsure) = (sure + task_sure, unsure + task_unsure);
        }
        let total: i64 = storage.get_usage("total").await?.iter().map(|(_, count)| count).sum();
        assert!(sure <= total && total <= sure + unsure, "{sure} <= {total} <= {sure} + {unsure}");
        println!("{sure} acknowledged, {unsure} unknown, {total} there");
        Ok(())
    }
}
