/// One item of each kind.
pub trait Everything: Backend {
    /// Wrapped with the backend.
    #[layered(LayeredTransaction)]
    type Transaction: Transaction;

    /// Not an operation.
    #[forward]
    fn set_limit(&mut self, limit: usize);

    /// The layer is called, too; there is a default body.
    #[forward(layer)]
    fn set_name(&mut self, name: String) {
        drop(name);
    }

    /// The layer modifies the result.
    #[operation(control, harmless, operator, then = complete)]
    fn describe(&self) -> impl Future<Output = Result<Text>> + Send;

    /// Borrowed and owned arguments, with names that the expansion also uses.
    #[operation(read)]
    fn get(
        &self,
        key: &Key,
        layer: Option<&'static str>,
        inner: Cow<'_, [u8]>,
        call: fn(&str) -> bool,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// A batch.
    #[operation(write, overwrites, batch = items)]
    fn set_many(&self, items: &[(Key, Value)]) -> impl Future<Output = Result<BatchReport>> + Send;

    /// A batch with a default body.
    #[operation(read, batch = keys)]
    fn get_many(&self, keys: &[Key]) -> impl Future<Output = Result<Vec<Value>>> + Send {
        async move { Ok(keys.iter().map(Value::of).collect()) }
    }

    /// Returns the wrapped type.
    #[operation(control)]
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send;

    /// Ends it.
    #[operation(control, replayable, operator, closes)]
    fn close(&self) -> impl Future<Output = Result<()>> + Send;

    /// Returns a stream. Its name is a keyword.
    #[operation(read, backup)]
    fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send;

    /// Its name is a keyword, too.
    #[operation(write)]
    fn r#move(&self, r#type: u8) -> impl Future<Output = Result<()>> + Send;
}
