//! The macro `#[capability]`, which makes the methods of a trait operations that layers wrap.

mod capability;
mod generate;
mod operation;
#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

/// Turns the methods of a trait into operations: values that a layer can wrap.
///
/// For a trait of backends the macro generates a call value for each method with `#[operation(..)]`, and an
/// implementation of the trait for `Layered<L, B>`, so that a layered backend has exactly the capabilities of
/// the bare one. With `#[capability(on = LayeredTransaction)]` it does the same for a trait of transactions.
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
/// ends the transaction. Operations have no type parameters and no default body. Their arguments must be
/// borrowed or `Clone`, because a layer may run a call twice.
///
/// The supertrait is `Backend` or another capability. If gateway-storage has another name or is re-exported,
/// write `#[capability(crate = path)]`.
#[proc_macro_attribute]
pub fn capability(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let (mut tokens, error) = capability::expand(arguments.into(), item.into());
    tokens.extend(error.map(|error| error.to_compile_error()));
    tokens.into()
}
