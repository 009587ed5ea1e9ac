/// Changed, then consumed.
pub trait Steps: Send + 'static {
    /// Changes it.
    #[operation(write, batch = items)]
    fn put(&mut self, layer: &Key, items: Vec<u8>) -> impl Future<Output = Result<()>> + Send;

    /// Ends it.
    #[operation(control)]
    fn finish(self, inner: bool) -> impl Future<Output = Result<()>> + Send;
}
