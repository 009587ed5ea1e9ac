//! One method of a capability: what its attribute and its signature say.

use proc_macro2::{Ident, Span};
use syn::{
    Error, FnArg, GenericArgument, Lifetime, Meta, Pat, PathArguments, Result, ReturnType, Token,
    TraitItemFn, Type, TypeParamBound, parse::Parser, punctuated::Punctuated, spanned::Spanned,
    visit_mut::VisitMut,
};

const RETURNS: &str = "an operation returns `impl Future<Output = Result<T>> + Send`, or \
                       `impl Stream<Item = Result<T>> + Send`";

/// An operation, understood.
pub(crate) struct Operation {
    pub(crate) name: Ident,
    pub(crate) kind: Ident,
    pub(crate) replayable: bool,
    pub(crate) batch: Option<Ident>,
    pub(crate) receiver: Receiver,
    pub(crate) arguments: Vec<(Ident, Type)>,
    pub(crate) returns: Returns,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Receiver {
    /// `&self`
    Shared,
    /// `&mut self`
    Exclusive,
    /// `self`
    Consumed,
}

pub(crate) enum Returns {
    Future(Type),
    Stream,
}

impl Operation {
    /// Reads a method that is marked `#[operation(..)]`.
    pub(crate) fn read(method: &TraitItemFn, attribute: &syn::Attribute) -> Result<Self> {
        let signature = &method.sig;
        if let Some(keyword) = &signature.asyncness {
            let message = format!(
                "write `fn {}(..) -> impl Future<Output = Result<T>> + Send`: \
                                   an `async fn` doesn't promise Send",
                signature.ident
            );
            return Err(Error::new(keyword.span(), message));
        }
        if let Some(parameter) = signature.generics.params.first() {
            return Err(Error::new(
                parameter.span(),
                "an operation has no parameters of its own: layers must be able to run the call again",
            ));
        }
        if let Some(body) = &method.default {
            return Err(Error::new(
                body.span(),
                "an operation has no default body: every backend implements it",
            ));
        }
        let (kind, replayable, batch) = read_attribute(attribute)?;
        let (receiver, arguments) = read_arguments(signature)?;
        if let Some(batch) = &batch
            && !arguments.iter().any(|(name, _)| name == batch)
        {
            return Err(Error::new(batch.span(), format!("there is no argument `{batch}`")));
        }
        let returns = read_return(&signature.output)?;
        if matches!(returns, Returns::Stream) && receiver != Receiver::Shared {
            return Err(Error::new(
                signature.output.span(),
                "an operation that gives a stream takes `&self`",
            ));
        }
        Ok(Self { name: signature.ident.clone(), kind, replayable, batch, receiver, arguments, returns })
    }
}

fn read_attribute(attribute: &syn::Attribute) -> Result<(Ident, bool, Option<Ident>)> {
    const EXPECTED: &str =
        "expected `read`, `write` or `control`, then `replayable` and `batch = argument` if they apply";
    let list = attribute.meta.require_list().map_err(|error| Error::new(error.span(), EXPECTED))?;
    let words = Punctuated::<Meta, Token![,]>::parse_terminated.parse2(list.tokens.clone())?;
    let (mut kind, mut replayable, mut batch) = (None, false, None);
    for word in words {
        match &word {
            Meta::Path(path) if kind.is_none() && path.is_ident("read") => {
                (kind, replayable) = (Some(Ident::new("Read", path.span())), true);
            }
            Meta::Path(path) if kind.is_none() && path.is_ident("write") => {
                kind = Some(Ident::new("Write", path.span()));
            }
            Meta::Path(path) if kind.is_none() && path.is_ident("control") => {
                kind = Some(Ident::new("Control", path.span()));
            }
            Meta::Path(path) if kind.is_some() && path.is_ident("replayable") => replayable = true,
            Meta::NameValue(pair) if kind.is_some() && pair.path.is_ident("batch") => match &pair.value {
                syn::Expr::Path(path) => batch = Some(path.path.require_ident()?.clone()),
                other => return Err(Error::new(other.span(), "expected the name of an argument")),
            },
            other => return Err(Error::new(other.span(), EXPECTED)),
        }
    }
    match kind {
        Some(kind) => Ok((kind, replayable, batch)),
        None => Err(Error::new(attribute.span(), EXPECTED)),
    }
}

fn read_arguments(signature: &syn::Signature) -> Result<(Receiver, Vec<(Ident, Type)>)> {
    let mut inputs = signature.inputs.iter();
    let receiver = match inputs.next() {
        Some(FnArg::Receiver(receiver)) if receiver.colon_token.is_none() => match &receiver.reference {
            Some(_) if receiver.mutability.is_some() => Receiver::Exclusive,
            Some(_) => Receiver::Shared,
            None => Receiver::Consumed,
        },
        _ => {
            return Err(Error::new(
                signature.paren_token.span.join(),
                "an operation takes `&self`; a transaction's takes `&mut self`, or `self` if it ends it",
            ));
        }
    };
    let arguments = inputs.map(|input| match input {
        FnArg::Typed(argument) => match &*argument.pat {
            Pat::Ident(name) => {
                let mut kind = (*argument.ty).clone();
                CallLifetime.visit_type_mut(&mut kind);
                Ok((name.ident.clone(), kind))
            }
            other => Err(Error::new(other.span(), "an operation's argument is a plain name")),
        },
        FnArg::Receiver(receiver) => Err(Error::new(receiver.span(), "a second receiver")),
    });
    Ok((receiver, arguments.collect::<Result<_>>()?))
}

/// Gives every borrowed argument the lifetime of the call value that holds it.
struct CallLifetime;

impl VisitMut for CallLifetime {
    fn visit_type_reference_mut(&mut self, reference: &mut syn::TypeReference) {
        reference.lifetime.get_or_insert_with(call_lifetime);
        syn::visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = call_lifetime();
        }
    }
}

pub(crate) fn call_lifetime() -> Lifetime {
    Lifetime::new("'call", Span::call_site())
}

/// `T` of `impl Future<Output = Result<T>> + Send`.
fn read_return(output: &ReturnType) -> Result<Returns> {
    let wrong = |span: Span| Error::new(span, RETURNS);
    let ReturnType::Type(_, returned) = output else { return Err(Error::new(Span::call_site(), RETURNS)) };
    let Type::ImplTrait(opaque) = &**returned else { return Err(wrong(returned.span())) };
    let traits: Vec<&syn::PathSegment> = opaque
        .bounds
        .iter()
        .filter_map(|bound| match bound {
            TypeParamBound::Trait(bound) => bound.path.segments.last(),
            _ => None,
        })
        .collect();
    if !traits.iter().any(|segment| segment.ident == "Send") {
        return Err(Error::new(returned.span(), format!("missing `+ Send`: {RETURNS}")));
    }
    let find = |name: &str, item: &str| {
        traits.iter().find(|segment| segment.ident == name).and_then(|segment| associated(segment, item))
    };
    let (result, stream) = match (find("Future", "Output"), find("Stream", "Item")) {
        (Some(result), None) => (result, false),
        (None, Some(result)) => (result, true),
        _ => return Err(wrong(returned.span())),
    };
    let Type::Path(path) = result else { return Err(wrong(result.span())) };
    let value = path.path.segments.last().filter(|segment| segment.ident == "Result").and_then(|segment| {
        match &segment.arguments {
            PathArguments::AngleBracketed(list) => match list.args.first() {
                Some(GenericArgument::Type(value)) if list.args.len() == 1 => Some(value.clone()),
                _ => None,
            },
            _ => None,
        }
    });
    match value {
        Some(_) if stream => Ok(Returns::Stream),
        Some(value) => Ok(Returns::Future(value)),
        None => Err(wrong(result.span())),
    }
}

fn associated<'s>(segment: &'s syn::PathSegment, name: &str) -> Option<&'s Type> {
    let PathArguments::AngleBracketed(list) = &segment.arguments else { return None };
    list.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(item) if item.ident == name => Some(&item.ty),
        _ => None,
    })
}
