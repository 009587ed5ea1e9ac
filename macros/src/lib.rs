//! The macro `#[capability]`, which makes the methods of a trait operations that layers wrap, and the setters
//! of gateway-storage's options types.

mod capability;
mod generate;
mod operation;
mod setters;
#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

/// Turns the methods of a trait into operations: values that a layer can wrap.
///
/// For a trait of backends the macro generates a call value for each method with `#[operation(..)]`. It
/// implements the trait for `Layered<L, B>`, so that a layered backend has exactly the capabilities of the
/// bare one, and for `Either<A, B>`, which has the capabilities of both. With
/// `#[capability(on = LayeredTransaction)]` it does the same for a trait of transactions.
///
/// With `#[capability(wrapper = NameWrapper)]` it also generates the trait `NameWrapper<Inner>`, and
/// implements the capability for `Wrapped<W, Inner>`. The trait has the same methods with the backend inside
/// as a further argument. A wrapper overrides those that it changes.
///
/// | on | attribute | meaning |
/// |---|---|---|
/// | a method | `#[operation(read)]` | It reads data. It may be repeated. |
/// | | `#[operation(write)]` | It changes data. |
/// | | `#[operation(control)]` | It neither reads nor changes data. |
/// | | `.., harmless` | For `control`: it has no lasting effect. It may be repeated like a read. |
/// | | `.., replayable` | Repeating it has the same effect and result, whatever else is written in between. |
/// | | `.., overwrites` | Repeating it has the same effect and result unless something else is written in between. |
/// | | `.., operator` | It is for operators, not for the work of an application. Concurrency limits do not apply. |
/// | | `.., closes` | It closes the store. |
/// | | `.., backup` | For a stream: when read to its end, it is a backup of the store. |
/// | | `.., endless` | For a stream: it ends only with an error. Its reader drops it in the end. |
/// | | `.., batch = items` | The argument `items` is a batch. If it is a slice, a layer may repeat some of its items. |
/// | | `.., then = method` | `Layer::method(&layer, &mut T)` may modify the result. |
/// | | `#[forward]` | It is not an operation: layers forward it to the backend. |
/// | | `#[forward(layer)]` | As `#[forward]`, and `Layer`'s method of that name is called first. |
/// | a type | `#[layered(Wrapper)]` | On a layered backend it is `Wrapper<L, ..>`; operations that return it wrap it. |
///
/// After a timeout or a lost reply, the attributes and the receiver decide the outcome. A read, a `harmless`
/// operation and a write of a transaction on `&mut self` have changed nothing: an uncommitted transaction has
/// no effect. For all other operations the outcome is unknown, whatever their names are.
///
/// An operation is `fn name(&self, ..) -> impl Future<Output = Result<T>> + Send` (or
/// `impl Stream<Item = Result<T>> + Send`). In a trait of transactions it takes `&mut self`, or `self` if it
/// ends the transaction. Operations have no type parameters. Their arguments must be borrowed or `Clone`,
/// because a layer may run a call twice.
///
/// An operation may have a default body that calls other operations of the trait:
/// `fn name(&self, ..) -> impl Future<..> + Send { async move { .. } }`. A layer sees one call of the
/// operation and none of those in the body, because the body runs on the backend inside all layers. A body
/// that takes `self` needs the supertrait `Sized`.
///
/// The supertrait is `Backend` or another capability. If gateway-storage has another name or is re-exported,
/// write `#[capability(crate = path)]`.
#[proc_macro_attribute]
pub fn capability(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let (mut tokens, error) = capability::expand(arguments.into(), item.into());
    tokens.extend(error.map(|error| error.to_compile_error()));
    tokens.into()
}

/// Generates a method `with_field` for each public field, which returns the struct with that field set.
///
/// The setter of an `Option<T>` takes a `T`. That of a text, a path, a key, a secret or a list takes what
/// converts into it.
#[proc_macro_derive(Setters)]
pub fn setters(item: TokenStream) -> TokenStream {
    setters::expand(item.into()).unwrap_or_else(|error| error.to_compile_error()).into()
}
