//! Default bodies are forwarded as one call, and can be overridden.

use std::collections::BTreeMap;

use futures_core::Stream;
use futures_util::{StreamExt, TryStreamExt, stream};
use gateway_storage::{
    Backend, Error, ErrorKind, Result, capability,
    layer::{Count, Layered, LayeredTransaction},
};

use super::{Shelf, batches::Partial};

/// A default body in each form of an operation.
#[capability]
trait Doubles: Backend {
    #[layered(LayeredTransaction)]
    type Sum: Sum;

    #[operation(read)]
    fn double(&self, number: u8) -> impl Future<Output = Result<u8>> + Send;

    #[operation(read, batch = numbers)]
    fn double_all(&self, numbers: &[u8]) -> impl Future<Output = Result<Vec<u8>>> + Send {
        async move {
            let mut doubled = Vec::new();
            for number in numbers {
                doubled.push(self.double(*number).await?);
            }
            Ok(doubled)
        }
    }

    #[operation(read)]
    fn doubles(&self, numbers: Vec<u8>) -> impl Stream<Item = Result<u8>> + Send {
        stream::iter(numbers).then(|number| self.double(number))
    }

    #[operation(control, harmless)]
    fn sum(&self) -> impl Future<Output = Result<Self::Sum>> + Send;
}

#[capability(on = LayeredTransaction)]
trait Sum: Sized + Send + 'static {
    #[operation(write)]
    fn add(&mut self, number: u8) -> impl Future<Output = Result<u8>> + Send;

    #[operation(write)]
    fn add_twice(&mut self, number: u8) -> impl Future<Output = Result<u8>> + Send {
        async move {
            self.add(number).await?;
            self.add(number).await
        }
    }

    #[operation(control)]
    fn end(self) -> impl Future<Output = Result<()>> + Send {
        async move {
            drop(self);
            Ok(())
        }
    }
}

impl Doubles for Shelf {
    type Sum = u8;

    async fn double(&self, number: u8) -> Result<u8> {
        Ok(2 * number)
    }

    async fn sum(&self) -> Result<u8> {
        Ok(0)
    }
}

impl Sum for u8 {
    async fn add(&mut self, number: u8) -> Result<u8> {
        *self += number;
        Ok(*self)
    }
}

/// Overrides every default body, with other results.
impl Doubles for Partial {
    type Sum = Shelf;

    async fn double(&self, number: u8) -> Result<u8> {
        Ok(2 * number)
    }

    async fn double_all(&self, _: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![77])
    }

    fn doubles(&self, _: Vec<u8>) -> impl Stream<Item = Result<u8>> + Send {
        stream::iter([Ok(78)])
    }

    async fn sum(&self) -> Result<Shelf> {
        Ok(Shelf::default())
    }
}

impl Sum for Shelf {
    async fn add(&mut self, number: u8) -> Result<u8> {
        Ok(number)
    }

    async fn add_twice(&mut self, _: u8) -> Result<u8> {
        Ok(79)
    }

    async fn end(self) -> Result<()> {
        Err(Error::new(ErrorKind::Conflict, "overridden"))
    }
}

/// The results of every operation with a default body through a layer, which counts one call for each.
async fn defaults<B: Doubles>(backend: B) -> (Vec<u8>, Vec<u8>, u8, bool) {
    let count = Count::default();
    let layered = Layered::new(count.clone(), backend);
    let spawned = tokio::spawn(async move {
        let doubled = layered.double_all(&[1, 2]).await.unwrap();
        let streamed = layered.doubles(vec![3, 4]).try_collect().await.unwrap();
        let mut sum = layered.sum().await.unwrap();
        (doubled, streamed, sum.add_twice(5).await.unwrap(), sum.end().await.is_ok())
    });
    let results = spawned.await.unwrap();
    let called = ["double_all", "doubles", "sum", "transaction_add_twice", "end"].map(|name| (name, 1));
    assert_eq!(count.all(), BTreeMap::from(called));
    results
}

#[tokio::test]
async fn default_bodies_are_one_call_and_can_be_overridden() {
    assert_eq!(defaults(Shelf::default()).await, (vec![2, 4], vec![6, 8], 10, true));
    assert_eq!(defaults(Partial::default()).await, (vec![77], vec![78], 79, false));
}
