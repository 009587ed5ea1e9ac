//! Types with the names that the expansion uses, and the crate under another name.

mod facade {
    pub(crate) use ::gateway_storage::*;
}

use facade::{Backend, BatchReport, Result, capability};

#[derive(Clone, Debug, PartialEq)]
struct B(u8);
#[derive(Clone, Debug, PartialEq)]
struct L(u8);
/// The name that the expansion gives to the call of `swap`.
#[derive(Clone, Debug, PartialEq)]
struct SwapCall(B, L);

#[capability(crate = facade)]
trait Swaps: Backend {
    #[layered(Wrapped)]
    type Draft: Draft;

    #[operation(write)]
    fn swap(&self, b: &B, l: L) -> impl Future<Output = Result<SwapCall>> + Send;

    #[operation(write, batch = all)]
    fn swap_many(&self, all: &[B]) -> impl Future<Output = Result<BatchReport>> + Send;

    #[operation(control)]
    fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send;

    #[forward]
    fn first(&self, b: B) -> L;
}

#[capability(on = LayeredTransaction, crate = facade)]
trait Draft: Send + 'static {
    #[operation(write)]
    fn put(&mut self, b: B) -> impl Future<Output = Result<L>> + Send;
}

use facade::layer::LayeredTransaction as Wrapped;

#[derive(Clone)]
struct Swapper;

plain_backend!(Swapper, "swapper");

impl Swaps for Swapper {
    type Draft = Self;

    async fn swap(&self, b: &B, l: L) -> Result<SwapCall> {
        Ok(SwapCall(B(l.0), L(b.0)))
    }

    async fn swap_many(&self, all: &[B]) -> Result<BatchReport> {
        let mut report = BatchReport::default();
        report.succeeded = all.len();
        Ok(report)
    }

    async fn draft(&self) -> Result<Self> {
        Ok(self.clone())
    }

    fn first(&self, b: B) -> L {
        L(b.0)
    }
}

impl Draft for Swapper {
    async fn put(&mut self, b: B) -> Result<L> {
        Ok(L(b.0))
    }
}

#[tokio::test]
async fn names_of_the_caller_do_not_clash_with_the_expansion() {
    let layered = gateway_storage::layer::Layered::new(gateway_storage::layer::Retry::new(), Swapper);
    assert_eq!(layered.swap(&B(1), L(2)).await.unwrap(), SwapCall(B(2), L(1)));
    assert_eq!(layered.swap_many(&[B(1), B(2)]).await.unwrap().succeeded, 2);
    assert_eq!(layered.first(B(3)), L(3));
    assert_eq!(layered.draft().await.unwrap().put(B(4)).await.unwrap(), L(4));
}
