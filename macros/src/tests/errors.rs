//! Invalid traits: the messages and the positions of their errors.

use std::ops::Range;

use crate::capability::expand;

const RETURNS: &str = "an operation returns `impl Future<Output = Result<T>> + Send`, or `impl Stream<Item = Result<T>> + Send`";
const OPERATION: &str = "expected `read`, `write` or `control`, then `harmless`, `replayable`, `overwrites`, `operator`, \
                         `closes`, `backup`, `endless`, `batch = argument` and `then = method` if they apply";
const TARGET: &str = "expected nothing for a trait of backends, `on = LayeredTransaction`, `wrapper = Name` for a trait of that \
                      name that wrappers implement, and `crate = path` if this crate has another name";
const LAYERED: &str = "name the wrapper that layers put around this: `#[layered(LayeredTransaction)]`";
const SELF_RETURNED: &str = "an operation can return `Self` only as `Result<Self::Name>`, with \
                             `#[layered(..)] type Name` in this trait: a layer must be able to wrap it";
const NO_MORE: &str = "a layer promises `Send` and no more: an operation returns `impl Future<Output = Result<T>> + \
                       Send`, or `impl Stream<Item = Result<T>> + Send`";

/// Removes the marks « and » from the text, and returns the ranges that they enclose, in order.
fn marked(text: &str) -> (String, Vec<Range<usize>>) {
    let (mut plain, mut ranges, mut start) = (String::new(), Vec::new(), 0);
    for character in text.chars() {
        match character {
            '«' => start = plain.len(),
            '»' => ranges.push(start..plain.len()),
            other => plain.push(other),
        }
    }
    (plain, ranges)
}

/// Asserts that the errors are these messages, one for each marked range, in order.
#[track_caller]
fn refused_with(arguments: &str, item: &str, messages: &[&str]) {
    let ((arguments, in_arguments), (item, in_item)) = (marked(arguments), marked(item));
    let (tokens, error) = expand(arguments.parse().unwrap(), item.parse().unwrap());
    let found: Vec<_> = error
        .expect("the macro accepts it")
        .into_iter()
        .map(|error| (error.span().byte_range(), error.to_string()))
        .collect();
    let ranges = in_arguments.into_iter().chain(in_item);
    let expected: Vec<_> = ranges.zip(messages.iter().map(|message| (*message).to_owned())).collect();
    assert_eq!(found, expected, "\nin: {item}");
    assert!(!tokens.is_empty(), "a refused trait is output");
    for ours in ["# [operation", "# [forward", "# [layered"] {
        assert!(!tokens.to_string().contains(ours), "our attributes are not output: {tokens}");
    }
}

#[track_caller]
fn refused(item: &str, message: &str) {
    refused_with("", item, &[message]);
}

/// A trait of backends with this method or type.
#[track_caller]
fn member_refused(member: &str, message: &str) {
    refused(&format!("trait T: Backend {{ {member} }}"), message);
}

/// A trait of backends with this operation.
#[track_caller]
fn operation_refused(operation: &str, message: &str) {
    member_refused(&format!("#[operation(read)] {operation}"), message);
}

#[track_caller]
fn transaction_refused(member: &str, message: &str) {
    refused_with("on = LayeredTransaction", &format!("trait T: Send {{ {member} }}"), &[message]);
}

#[test]
fn marks_are_removed_and_located() {
    assert_eq!(marked("a «b» «c»"), ("a b c".to_owned(), vec![2..3, 4..5]));
}

#[test]
fn arguments_of_the_attribute() {
    refused_with("«on = Layered»", "trait T {}", &[TARGET]);
    refused_with("«LayeredTransaction»", "trait T {}", &[TARGET]);
    refused_with("on = LayeredTransaction, «on = Layered»", "trait T {}", &[TARGET]);
    refused_with("«crate = \"path\"»", "trait T {}", &[TARGET]);
    refused_with("«wrapper = a::B»", "trait T {}", &[TARGET]);
    refused("«struct» S;", "#[capability] belongs on a trait: expected `trait`");
    refused("trait «T» {}", "a capability stands on a backend: write `trait T: Backend`");
    refused_with(
        "on = LayeredTransaction",
        "trait «T» {}",
        &["a transaction is moved: write `trait T: Send + 'static`"],
    );
    refused("trait T<«X: Send»> {}", "a capability has no parameters: the backend is the only type");
}

#[test]
fn all_errors_are_reported_at_once() {
    let only = "a capability has methods and associated types only";
    refused_with(
        "",
        "trait T: Backend { type «A»; «const B: u8;» «c! {}» #[operation(read)] fn «d»(&self); }",
        &[LAYERED, only, only, RETURNS],
    );
}

#[test]
fn attributes_of_a_method() {
    let what = "say what this is: `#[operation(read)]`, `#[operation(write)]`, `#[operation(control)]`, or \
                `#[forward]` if layers have nothing to do with it";
    member_refused("fn «a»(&self);", what);
    let both = "a method has either `#[operation(..)]` or `#[forward]`";
    member_refused("#[operation(read)] #[«forward»] fn a(&self);", both);

    let future = "fn a(&self, items: &[u8]) -> impl Future<Output = Result<u8>> + Send;";
    for attribute in [
        "«operation»",
        "«operation()»",
        "«operation = 1»",
        "operation(«replayable», read)",
        "operation(«delete»)",
        "operation(read, «write»)",
        "operation(read, «batch»)",
        "operation(read, «batch(items)»)",
        "operation(«1»)",
        "operation(read «write»)",
    ] {
        member_refused(&format!("#[{attribute}] {future}"), OPERATION);
    }
    member_refused(
        &format!("#[operation(read, batch = «\"items\"»)] {future}"),
        "expected the name of an argument",
    );
    member_refused(&format!("#[operation(read, batch = «ids»)] {future}"), "there is no argument `ids`");
    let stream = "fn a(&self, items: &[u8]) -> impl Stream<Item = Result<u8>> + Send;";
    member_refused(&format!("#[operation(read, batch = «items»)] {stream}"), "a stream has no batch size");

    let facts = [
        ("read, «harmless»", "only `control` can be `harmless`: a read always is, a write never is"),
        ("write, «harmless»", "only `control` can be `harmless`: a read always is, a write never is"),
        ("read, «overwrites»", "a read overwrites nothing"),
        (
            "write, replayable, «overwrites»",
            "`overwrites` excludes `replayable` and `harmless`: a write in between makes a repetition unsafe",
        ),
        ("write, «closes»", "an operation that closes the store is `control` and takes `&self`"),
        ("read, «backup»", "a backup is a `read` that returns a stream"),
        ("read, «endless»", "only a stream is `endless`"),
    ];
    for (words, message) in facts {
        member_refused(&format!("#[operation({words})] {future}"), message);
    }
    let in_transaction = "fn a(&mut self) -> impl Future<Output = Result<u8>> + Send;";
    for (words, message) in [
        ("write, «replayable»", "a transaction's operation is not repeated"),
        ("write, «overwrites»", "a transaction's operation is not repeated"),
        ("control, «closes»", "an operation that closes the store is `control` and takes `&self`"),
    ] {
        transaction_refused(&format!("#[operation({words})] {in_transaction}"), message);
    }

    let cfg = "a capability is the same in every build: put `#[cfg(..)]` on the whole trait";
    operation_refused(&format!("«#[cfg(unix)]» {future}"), cfg);
    member_refused("#[forward] «#[cfg(unix)]» fn a(&self);", cfg);
    member_refused("#[layered(W)] «#[cfg(unix)]» type A;", cfg);
}

#[test]
fn arguments_of_an_operation() {
    let receiver = "an operation takes `&self`; a transaction's takes `&mut self`, or `self` if it ends it";
    let future = "-> impl Future<Output = Result<u8>> + Send;";
    operation_refused(&format!("fn a«()» {future}"), receiver);
    operation_refused(&format!("fn a«(key: &Key)» {future}"), receiver);
    operation_refused(&format!("fn a«(self: &Self)» {future}"), receiver);
    operation_refused(&format!("fn a«(&'static self)» {future}"), receiver);
    let backend = "a backend's operation takes `&self`; only a transaction is changed or consumed";
    operation_refused(&format!("fn a(«&mut self») {future}"), backend);
    operation_refused(&format!("fn a(«self», key: &Key) {future}"), backend);
    let transaction = "a transaction's operation takes `&mut self`, or `self` if it ends the transaction";
    transaction_refused(&format!("#[operation(read)] fn a(«&self») {future}"), transaction);
    transaction_refused(
        "#[operation(read)] fn a(«&mut self») -> impl Stream<Item = Result<u8>> + Send;",
        "an operation that returns a stream takes `&self`",
    );

    let named = "an operation's arguments have types that can be named: a layer holds them";
    operation_refused(&format!("fn a(&self, key: Option<«impl» AsRef<str>>) {future}"), named);
    let own = "an operation's arguments can't mention `Self`, which is another type with layers";
    operation_refused(&format!("fn a(&self, other: &«Self») {future}"), own);
    operation_refused(&format!("fn a(&self, ids: Vec<«Self»::Id>) {future}"), own);
    operation_refused(&format!("fn a(&self, «_»: u8) {future}"), "an argument must be a plain name");
    operation_refused(
        &format!("fn a(&self, «(x, y)»: (u8, u8)) {future}"),
        "an argument must be a plain name",
    );
}

#[test]
fn signature_of_an_operation() {
    let future = "-> impl Future<Output = Result<u8>> + Send";
    let parameters = "an operation has no parameters of its own: layers must be able to run the call again";
    operation_refused(&format!("fn a<«K: IntoKey»>(&self, key: K) {future};"), parameters);
    operation_refused(&format!("fn a<«'k»>(&self, key: &'k Key) {future};"), parameters);
    operation_refused(
        "«async» fn list(&self) -> Result<u8>;",
        "write `fn list(..) -> impl Future<Output = Result<T>> + Send`: an `async fn` doesn't promise Send",
    );
    operation_refused(&format!("«unsafe» fn a(&self) {future};"), "an operation can't be `unsafe`");
    operation_refused(
        &format!("fn a(&self) {future} «where Self: Sized»;"),
        "an operation has no `where` clause: what it needs is a supertrait of the capability",
    );
}

#[test]
fn return_type_of_an_operation() {
    for wrong in [
        "fn «a»(&self);",
        "fn a(&self) -> «Result<u8>»;",
        "fn a(&self) -> «Pin<Box<dyn Future<Output = Result<u8>> + Send>>»;",
        "fn a(&self) -> «impl Send»;",
        "fn a(&self) -> «impl Future + Send»;",
        "fn a(&self) -> «impl Stream<Output = Result<u8>> + Send»;",
        "fn a(&self) -> impl Future<Output = «u8»> + Send;",
        "fn a(&self) -> impl Future<Output = «Result»> + Send;",
        "fn a(&self) -> impl Future<Output = «Result<u8, io::Error>»> + Send;",
        "fn a(&self) -> impl Stream<Item = «Option<u8>»> + Send;",
    ] {
        operation_refused(wrong, RETURNS);
    }
    let send = format!("missing `+ Send`: {RETURNS}");
    operation_refused("fn a(&self) -> «impl Future<Output = Result<u8>>»;", &send);
    for more in [
        "fn a(&self) -> impl Future<Output = Result<u8>> + Send + «Sync»;",
        "fn a(&self) -> impl Future<Output = Result<u8>> + Send + «'static»;",
        "fn a(&self) -> impl Future<Output = Result<u8>> + Send + «use<Self>»;",
        "fn a(&self) -> impl Stream<Item = Result<u8>> + «Unpin» + Send;",
        "fn a(&self) -> impl Stream<Item = Result<u8>> + «Future<Output = Result<u8>>» + Send;",
    ] {
        operation_refused(more, NO_MORE);
    }
}

#[test]
fn associated_types() {
    member_refused("type «A»: Send;", LAYERED);
    member_refused("#[«layered»] type A: Send;", LAYERED);
    member_refused("#[«layered(1)»] type A: Send;", LAYERED);
    member_refused("#[«layered(W<u8>)»] type A: Send;", LAYERED);
    member_refused("#[layered(W)] type A<«'a»>: Send;", "an associated type has no parameters here");
    transaction_refused("#[layered(W)] «type A: Send;»", "a trait of transactions has methods only");

    operation_refused("fn a(&self) -> impl Future<Output = Result<«Self::Unknown»>> + Send;", SELF_RETURNED);
    let layered = "#[layered(W)] type A: Send; #[operation(read)] fn a(&self) ->";
    for wrong in [
        "impl Future<Output = Result<Option<«Self»::A>>> + Send;",
        "impl Future<Output = Result<«Self»>> + Send;",
        "impl Future<Output = Result<<«Self» as T>::A>> + Send;",
        "impl Stream<Item = Result<«Self»::A>> + Send;",
    ] {
        member_refused(&format!("{layered} {wrong}"), SELF_RETURNED);
    }
}

#[test]
fn forwarded_methods() {
    let receiver = "a `#[forward]` method takes `&self` or `&mut self`";
    member_refused("#[forward] fn a«()» -> u8;", receiver);
    member_refused("#[forward] fn a«(self)» -> u8;", receiver);
    member_refused("#[forward] fn a(&self, «_»: u8);", "an argument must be a plain name");
    let own = "a `#[forward]` method can't mention `Self`, which is another type with layers";
    member_refused("#[forward] fn a(&self) -> «Self»;", own);
    let asynchronous = "a `#[forward]` method can't be async; use an operation";
    member_refused("#[forward] «async» fn a(&self);", asynchronous);
    let then = "#[operation(control, then = «1»)] fn a(&self) -> impl Future<Output = Result<u8>> + Send;";
    member_refused(then, "expected the name of a method of `Layer`");
    let stream = "#[operation(read, then = «b»)] fn a(&self) -> impl Stream<Item = Result<u8>> + Send;";
    member_refused(stream, "`then` can't be used on a stream");
    let wrapped = "#[layered(L)] type T; \
                   #[operation(control, then = «b»)] fn a(&self) -> impl Future<Output = Result<Self::T>> + Send;";
    member_refused(wrapped, "`then` can't be used where the result is a layered type");
    member_refused(
        "#[«forward(x)»] fn a(&self);",
        "expected `#[forward]`, or `#[forward(layer)]` to call the layer's method, too",
    );
    transaction_refused("#[forward] fn «a»(&self);", "a transaction can't have `#[forward]`");
}
