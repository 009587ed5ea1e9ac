//! A layer repeats a part of a batch.

use std::sync::{Arc, Mutex};

use gateway_storage::{
    Backend, BatchFailure, BatchReport, Error, ErrorKind, Result, capability,
    layer::{Layered, Retry},
};

use super::{Twice, key};

/// A backend that refuses some items of a batch. It records the batches that it received.
#[derive(Clone, Default)]
pub(super) struct Partial(Arc<Mutex<Vec<Vec<u8>>>>);

#[capability]
trait Numbers: Backend {
    #[operation(write, batch = numbers)]
    fn add(&self, scale: u8, numbers: &[u8]) -> impl Future<Output = Result<BatchReport>> + Send;
}

plain_backend!(Partial, "partial");

impl Numbers for Partial {
    /// Adds odd numbers always, and even numbers only if no odd one is in the batch.
    async fn add(&self, scale: u8, numbers: &[u8]) -> Result<BatchReport> {
        self.0.lock().unwrap().push(numbers.iter().map(|number| number * scale).collect());
        let is_mixed = numbers.iter().any(|number| number % 2 == 1);
        let mut report = BatchReport::default();
        for (index, number) in numbers.iter().enumerate() {
            if is_mixed && number % 2 == 0 {
                let error = Error::new(ErrorKind::Unavailable, "not now");
                report.failures.push(BatchFailure::new(index, &key("n"), error));
            } else {
                report.succeeded += 1;
            }
        }
        Ok(report)
    }
}

#[tokio::test(start_paused = true)]
async fn own_batches_are_retried_in_part() {
    let partial = Partial::default();
    let layered = Layered::new(Retry::new(), Layered::new(Twice::default(), partial.clone()));
    let report = layered.add(10, &[1, 2, 3, 4]).await.unwrap();
    assert_eq!((report.succeeded, report.is_complete()), (4, true));
    assert_eq!(*partial.0.lock().unwrap(), [vec![10, 20, 30, 40], vec![20, 40]]);
}
