//! Parses and checks a trait and its attributes.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{
    Attribute, Error, Expr, FnArg, Ident, ItemTrait, Meta, MetaNameValue, Path, Result, Token, TraitItem,
    TraitItemFn, TraitItemType, Type, parse::Parser, punctuated::Punctuated,
};

use crate::operation::{self, Operation, Receiver, Returns, find_word};

/// The type that the trait is implemented for when it is layered.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Target {
    Layered,
    LayeredTransaction,
}

/// A parsed trait.
pub(crate) struct Capability<'t> {
    pub(crate) item: &'t ItemTrait,
    pub(crate) target: Target,
    /// The path of gateway-storage.
    pub(crate) krate: Path,
    /// The name of the trait for wrappers, if there shall be one.
    pub(crate) wrapper: Option<Ident>,
    /// Associated types that are wrapped when the trait is layered.
    pub(crate) types: Vec<AssociatedType<'t>>,
    pub(crate) methods: Vec<Method<'t>>,
}

/// An associated type and the type that wraps it.
pub(crate) struct AssociatedType<'t> {
    pub(crate) item: &'t TraitItemType,
    pub(crate) layered: Path,
}

/// A parsed method.
pub(crate) struct Method<'t> {
    pub(crate) item: &'t TraitItemFn,
    pub(crate) receiver: Receiver,
    /// The names of the arguments.
    pub(crate) arguments: Vec<&'t Ident>,
    pub(crate) kind: Kind,
}

/// How layers treat a method.
pub(crate) enum Kind {
    /// Layers wrap it. The index is that of the associated type that it returns, if any.
    Operation(Box<Operation>, Option<usize>),
    /// Layers have nothing to do with it, but may be called before.
    Forward { calls_layer: bool },
}

/// Returns the output of the macro, and the errors of the trait, if any.
///
/// A trait with errors is output without the macro's attributes. So the code that uses the trait compiles and
/// adds no errors of its own.
pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> (TokenStream, Option<Error>) {
    let mut item: ItemTrait = match syn::parse2(item.clone()) {
        Ok(item) => item,
        Err(error) => {
            let error = Error::new(error.span(), format!("#[capability] belongs on a trait: {error}"));
            return (item, Some(error));
        }
    };
    let marks: Vec<Marks> = item.items.iter_mut().map(Marks::take).collect();
    match read_and_generate(arguments, &item, &marks) {
        Ok(generated) => (quote!(#item #generated), None),
        Err(error) => (item.into_token_stream(), Some(error)),
    }
}

fn read_and_generate(arguments: TokenStream, item: &ItemTrait, marks: &[Marks]) -> Result<TokenStream> {
    let Arguments { target, krate, wrapper } = read_arguments(arguments)?;
    if let Some(parameter) = item.generics.params.first() {
        let message = "a capability has no parameters: the backend is the only type";
        return Err(Error::new_spanned(parameter, message));
    }
    if item.supertraits.is_empty() {
        let message = match target {
            Target::Layered => {
                format!("a capability stands on a backend: write `trait {}: Backend`", item.ident)
            }
            Target::LayeredTransaction => {
                format!("a transaction is moved: write `trait {}: Send + 'static`", item.ident)
            }
        };
        return Err(Error::new(item.ident.span(), message));
    }
    let (types, methods) = (Vec::new(), Vec::new());
    let mut capability = Capability { item, target, krate, wrapper, types, methods };
    let mut errors: Option<Error> = None;
    let mut add_error = |error: Error| match &mut errors {
        Some(errors) => errors.combine(error),
        None => errors = Some(error),
    };
    let items = || item.items.iter().zip(marks);

    // Reads types first, because an operation may return a type that is declared after it.
    for (item, marks) in items() {
        if let TraitItem::Type(associated) = item {
            match capability.read_type(associated, marks) {
                Ok(read) => capability.types.push(read),
                Err(error) => add_error(error),
            }
        }
    }
    for (item, marks) in items() {
        let result = match item {
            TraitItem::Fn(method) => {
                capability.read_method(method, marks).map(|method| capability.methods.push(method))
            }
            TraitItem::Type(_) => Ok(()),
            other => Err(Error::new_spanned(other, "a capability has methods and associated types only")),
        };
        result.unwrap_or_else(&mut add_error);
    }
    match errors {
        Some(errors) => Err(errors),
        None => Ok(capability.generate()),
    }
}

/// The arguments of the attribute.
struct Arguments {
    target: Target,
    krate: Path,
    wrapper: Option<Ident>,
}

fn read_arguments(arguments: TokenStream) -> Result<Arguments> {
    const EXPECTED: &str = "expected nothing for a trait of backends, `on = LayeredTransaction`, `wrapper = Name` for a trait of \
                            that name that wrappers implement, and `crate = path` if this crate has another name";
    let (mut target, mut krate) = (Target::Layered, syn::parse_quote!(::gateway_storage));
    let mut wrapper = None;
    let pairs = Punctuated::<MetaNameValue, Token![,]>::parse_terminated
        .parse2(arguments.clone())
        .map_err(|_| Error::new_spanned(arguments, EXPECTED))?;
    for pair in pairs {
        match &pair.value {
            Expr::Path(value) if pair.path.is_ident("on") && value.path.is_ident("LayeredTransaction") => {
                target = Target::LayeredTransaction;
            }
            Expr::Path(value) if pair.path.is_ident("crate") => krate = value.path.clone(),
            Expr::Path(value) if pair.path.is_ident("wrapper") && value.path.get_ident().is_some() => {
                wrapper = value.path.get_ident().cloned();
            }
            _ => return Err(Error::new_spanned(pair, EXPECTED)),
        }
    }
    Ok(Arguments { target, krate, wrapper })
}

impl<'t> Capability<'t> {
    fn read_type(&self, associated: &'t TraitItemType, marks: &Marks) -> Result<AssociatedType<'t>> {
        if self.target == Target::LayeredTransaction {
            return Err(Error::new_spanned(associated, "a trait of transactions has methods only"));
        }
        marks.refuse_cfg()?;
        if let Some(parameter) = associated.generics.params.first() {
            return Err(Error::new_spanned(parameter, "an associated type has no parameters here"));
        }
        let message = "name the wrapper that layers put around this: `#[layered(LayeredTransaction)]`";
        let Some(attribute) = &marks.layered else {
            return Err(Error::new(associated.ident.span(), message));
        };
        let layered = attribute
            .parse_args_with(Path::parse_mod_style)
            .map_err(|_| Error::new_spanned(&attribute.meta, message))?;
        Ok(AssociatedType { item: associated, layered })
    }

    fn read_method(&self, method: &'t TraitItemFn, marks: &Marks) -> Result<Method<'t>> {
        marks.refuse_cfg()?;
        let (receiver, kind) = match (&marks.operation, &marks.forward) {
            (Some(attribute), None) => {
                let operation = Operation::read(method, attribute)?;
                self.check_receiver(method, &operation)?;
                let returned = self.check_return(&operation)?;
                if let (Some(then), Some(_)) = (&operation.then, returned) {
                    let message = "`then` can't be used where the result is a layered type";
                    return Err(Error::new(then.span(), message));
                }
                (operation.receiver, Kind::Operation(Box::new(operation), returned))
            }
            (None, Some(attribute)) => {
                let calls_layer = match &attribute.meta {
                    Meta::Path(_) => false,
                    Meta::List(list)
                        if syn::parse2::<Ident>(list.tokens.clone()).is_ok_and(|word| word == "layer") =>
                    {
                        true
                    }
                    other => {
                        let message =
                            "expected `#[forward]`, or `#[forward(layer)]` to call the layer's method, too";
                        return Err(Error::new_spanned(other, message));
                    }
                };
                (self.check_forward(method)?, Kind::Forward { calls_layer })
            }
            (Some(_), Some(both)) => {
                let message = "a method has either `#[operation(..)]` or `#[forward]`";
                return Err(Error::new_spanned(&both.meta, message));
            }
            (None, None) => {
                return Err(Error::new(
                    method.sig.ident.span(),
                    "say what this is: `#[operation(read)]`, `#[operation(write)]`, `#[operation(control)]`, or \
                     `#[forward]` if layers have nothing to do with it",
                ));
            }
        };
        let (_, arguments) = operation::split_receiver(&method.sig);
        let arguments =
            arguments.map(|argument| operation::argument_name(argument)).collect::<Result<_>>()?;
        Ok(Method { item: method, receiver, arguments, kind })
    }

    fn check_receiver(&self, method: &TraitItemFn, operation: &Operation) -> Result<()> {
        let message = match (self.target, operation.receiver) {
            (Target::Layered, Receiver::Shared) => return Ok(()),
            (Target::LayeredTransaction, Receiver::Exclusive | Receiver::Consumed) => return Ok(()),
            (Target::Layered, _) => {
                "a backend's operation takes `&self`; only a transaction is changed or consumed"
            }
            (Target::LayeredTransaction, _) => {
                "a transaction's operation takes `&mut self`, or `self` if it ends the transaction"
            }
        };
        Err(Error::new_spanned(method.sig.inputs.first(), message))
    }

    /// The index of the associated type that an operation returns, if any. Refuses it inside another type,
    /// such as `Option`, where a layer can't wrap it.
    fn check_return(&self, operation: &Operation) -> Result<Option<usize>> {
        let (Returns::Future(value) | Returns::Stream(value)) = &operation.returns;
        let Some(found) = find_word(value.to_token_stream(), "Self") else { return Ok(None) };
        let named = match (value, &operation.returns) {
            (Type::Path(path), Returns::Future(_))
                if path.qself.is_none() && path.path.segments.len() == 2 =>
            {
                path.path.segments.last().map(|segment| &segment.ident)
            }
            _ => None,
        };
        let returned = self.types.iter().position(|associated| Some(&associated.item.ident) == named);
        returned.map(Some).ok_or_else(|| {
            let message = "an operation can return `Self` only as `Result<Self::Name>`, with \
                           `#[layered(..)] type Name` in this trait: a layer must be able to wrap it";
            match named {
                Some(_) => Error::new_spanned(value, message),
                None => Error::new(found.span(), message),
            }
        })
    }

    fn check_forward(&self, method: &TraitItemFn) -> Result<Receiver> {
        let signature = &method.sig;
        if self.target == Target::LayeredTransaction {
            return Err(Error::new(signature.ident.span(), "a transaction can't have `#[forward]`"));
        }
        if let Some(keyword) = &signature.asyncness {
            return Err(Error::new(keyword.span, "a `#[forward]` method can't be async; use an operation"));
        }
        let receiver = match signature.inputs.first() {
            Some(FnArg::Receiver(receiver)) if receiver.reference.is_some() => match receiver.mutability {
                Some(_) => Receiver::Exclusive,
                None => Receiver::Shared,
            },
            _ => {
                let message = "a `#[forward]` method takes `&self` or `&mut self`";
                return Err(Error::new(signature.paren_token.span.join(), message));
            }
        };
        if let Some(found) = find_word(signature.to_token_stream(), "Self") {
            let message = "a `#[forward]` method can't mention `Self`, which is another type with layers";
            return Err(Error::new(found.span(), message));
        }
        Ok(receiver)
    }
}

/// The macro's own attributes of an item of the trait.
struct Marks {
    operation: Option<Attribute>,
    forward: Option<Attribute>,
    layered: Option<Attribute>,
    cfg: Option<Attribute>,
}

impl Marks {
    /// Removes the attributes from the item.
    fn take(item: &mut TraitItem) -> Self {
        let none = &mut Vec::new();
        let attributes = match item {
            TraitItem::Fn(method) => &mut method.attrs,
            TraitItem::Type(associated) => &mut associated.attrs,
            _ => none,
        };
        let mut take = |name: &str| {
            let at = attributes.iter().position(|attribute| attribute.path().is_ident(name))?;
            Some(attributes.remove(at))
        };
        let (operation, forward, layered) = (take("operation"), take("forward"), take("layered"));
        let cfg = attributes.iter().find(|attribute| attribute.path().is_ident("cfg")).cloned();
        Self { operation, forward, layered, cfg }
    }

    fn refuse_cfg(&self) -> Result<()> {
        match &self.cfg {
            Some(cfg) => Err(Error::new_spanned(
                cfg,
                "a capability is the same in every build: put `#[cfg(..)]` on the whole trait",
            )),
            None => Ok(()),
        }
    }
}
