//! The `#[capability]` macro of gateway-storage.

mod capability;
mod generate;
mod operation;
#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

/// Makes the methods of a trait operations: values that a layer can be put around.
///
/// On a trait of backends it generates, for each method that is marked `#[operation(..)]`, a call value, and the
/// implementation of the whole trait for `Layered<L, B>`, so that a layered backend has exactly the capabilities
/// that the bare one has. With `#[capability(on = LayeredTransaction)]` it does so for a trait of transactions.
///
/// | on | attribute | says |
/// |---|---|---|
/// | a method | `#[operation(read)]` | it reads data, and may be repeated |
/// | | `#[operation(write)]`, `#[operation(control)]` | it changes data; it does neither |
/// | | `.., harmless` | of `control`: it has no effect that could matter later; may be repeated like a read |
/// | | `.., replayable` | doing it twice is doing it once, in effect and in result, whatever others write in between |
/// | | `.., overwrites` | the same, unless someone else writes in between |
/// | | `.., operator` | it is an operator's, and no application's work: not limited |
/// | | `.., closes` | after it the store is closed |
/// | | `.., backup` | of a stream: read to its end, it is a backup of the store |
/// | | `.., batch = items` | the length of the argument `items` is its batch size; of a slice, a layer may run some of its items again |
/// | | `.., then = method` | `Layer::method(&layer, &mut T)` may add to what came |
/// | | `#[forward]` | it is no operation: layers pass it through |
/// | | `#[forward(layer)]` | `Layer`'s method of that name is told, too |
/// | a type | `#[layered(Wrapper)]` | layered, it is `Wrapper<L, ..>`; operations that return it wrap it |
///
/// What is late or lost is told by these words and the receiver: nothing was done by a read, by what is harmless, and by a write of a
/// transaction on `&mut self` (one that was not committed did not happen). Of anything else nothing is known, be it called
/// `commit`, `publish` or `rotate_keys`.
///
/// An operation is `fn name(&self, ..) -> impl Future<Output = Result<T>> + Send` (or `impl Stream<Item =
/// Result<T>> + Send`); a transaction's takes `&mut self`, or `self` if it ends it. Operations have no type
/// parameters and no default body: their arguments must be borrowed or `Clone`, since a layer may run a call twice.
///
/// The trait's supertrait is `Backend`, or another capability. Where this crate has another name, or is
/// re-exported, `#[capability(crate = path)]` says so.
#[proc_macro_attribute]
pub fn capability(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let (mut tokens, error) = capability::expand(arguments.into(), item.into());
    tokens.extend(error.map(|error| error.to_compile_error()));
    tokens.into()
}
