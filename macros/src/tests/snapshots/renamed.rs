/// The crate has another path.
pub trait Renamed: Backend {
    #[layered(Wrapper)]
    type Draft: Draft;

    #[forward(layer)]
    fn set_name(&mut self, name: String);

    #[operation(control)]
    fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send;

    #[operation(write, batch = items)]
    fn put(&self, items: &[B], layer: L) -> impl Future<Output = Result<BatchReport>> + Send;

    #[operation(read)]
    fn list(&self) -> impl Stream<Item = Result<u8>> + Send;
}
