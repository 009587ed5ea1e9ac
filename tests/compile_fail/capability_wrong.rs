//~ say what this is: `#[operation(read)]`
//~ missing `+ Send`: an operation returns
//~ an operation has no parameters of its own
//~ there is no argument `ids`
//~ an operation can return `Self` only as `Result<Self::Name>`
//~ expected `read`, `write` or `control`
use gateway_storage::{IntoKey, Backend, Key, Result, capability};

// Wrong in every method: each gives one error, and the trait's users give none.
#[capability]
trait Labels: Backend {
    fn label_of(&self, key: &Key) -> impl Future<Output = Result<String>> + Send;

    #[operation(read)]
    fn labels(&self) -> impl Future<Output = Result<Vec<String>>>;

    #[operation(write)]
    fn set_label(&self, key: impl IntoKey) -> impl Future<Output = Result<()>> + Send;

    #[operation(write)]
    fn set<K: IntoKey>(&self, key: K) -> impl Future<Output = Result<()>> + Send;

    #[operation(write, batch = ids)]
    fn delete_labels(&self, keys: &[Key]) -> impl Future<Output = Result<()>> + Send;

    #[operation(read)]
    fn copy(&self) -> impl Future<Output = Result<Self>> + Send;

    #[operation(delete)]
    fn delete_label(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    #[operation(read)]
    fn count(&self);
}

async fn user<B: Labels>(backend: B, key: &Key) -> Result<String> {
    backend.label_of(key).await
}

fn main() {}
