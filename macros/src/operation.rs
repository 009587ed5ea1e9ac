//! Parses and checks one method and its attribute.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Attribute, Error, Expr, FnArg, GenericArgument, Lifetime, Meta, ParenthesizedGenericArguments, Pat,
    PatType, PathArguments, PathSegment, Result, ReturnType, Signature, Token, TraitItemFn, Type, TypeBareFn,
    TypeParamBound, TypeReference, parse::Parser, punctuated::Punctuated, visit_mut::VisitMut,
};

const RETURNS: &str = "an operation returns `impl Future<Output = Result<T>> + Send`, or \
                       `impl Stream<Item = Result<T>> + Send`";

/// A parsed operation.
pub(crate) struct Operation {
    pub(crate) name: Ident,
    pub(crate) kind: Ident,
    /// The other words of its attribute. Each is a method of `Operation`.
    pub(crate) facts: Vec<Ident>,
    pub(crate) batch: Option<Ident>,
    /// The layer's method that may modify the result.
    pub(crate) then: Option<Ident>,
    pub(crate) receiver: Receiver,
    pub(crate) arguments: Vec<(Ident, Type)>,
    /// Whether an argument is borrowed, and the call value has the lifetime `'__call`.
    pub(crate) borrows: bool,
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

/// The `T` of the returned `Result<T>`.
pub(crate) enum Returns {
    Future(Type),
    Stream(Type),
}

impl Operation {
    /// Parses a method with `#[operation(..)]`.
    pub(crate) fn read(method: &TraitItemFn, attribute: &Attribute) -> Result<Self> {
        let signature = &method.sig;
        check_plain(method)?;
        let Attributes { kind, facts, batch, then } = read_attribute(attribute)?;
        let (receiver, inputs) = split_receiver(signature);
        let receiver = receiver.ok_or_else(|| {
            Error::new(
                signature.paren_token.span.join(),
                "an operation takes `&self`; a transaction's takes `&mut self`, or `self` if it ends it",
            )
        })?;
        let mut borrowed = ElidedLifetimes::new("'__call");
        let arguments: Vec<_> = inputs
            .map(|argument| {
                let name = argument_name(argument)?.clone();
                check_argument(&argument.ty)?;
                let mut kind = (*argument.ty).clone();
                borrowed.visit_type_mut(&mut kind);
                Ok((name, kind))
            })
            .collect::<Result<_>>()?;
        let returns = read_return(signature)?;
        check_facts(&kind, &facts, receiver, &returns)?;
        if let Returns::Stream(_) = returns
            && receiver != Receiver::Shared
        {
            let message = "an operation that returns a stream takes `&self`";
            return Err(Error::new_spanned(signature.inputs.first(), message));
        }
        if let Some(batch) = &batch {
            if !arguments.iter().any(|(name, _)| name == batch) {
                return Err(Error::new(batch.span(), format!("there is no argument `{batch}`")));
            }
            if let Returns::Stream(_) = returns {
                return Err(Error::new(batch.span(), "a stream has no batch size"));
            }
        }
        if let (Some(then), Returns::Stream(_)) = (&then, &returns) {
            return Err(Error::new(then.span(), "`then` can't be used on a stream"));
        }
        let (name, borrows) = (signature.ident.clone(), borrowed.used);
        Ok(Self { name, kind, facts, batch, then, receiver, arguments, borrows, returns })
    }
}

impl Operation {
    /// The batch argument and the type of its items, if a layer can repeat some of the items: the argument is
    /// a slice, and the receiver is shared.
    pub(crate) fn slice(&self) -> Option<(&Ident, &Type)> {
        let batch = self.batch.as_ref().filter(|_| self.receiver == Receiver::Shared)?;
        let (name, kind) = self.arguments.iter().find(|(name, _)| name == batch)?;
        let Type::Reference(reference) = kind else { return None };
        let Type::Slice(slice) = &*reference.elem else { return None };
        Some((name, &slice.elem))
    }
}

/// Checks that the method has only arguments: a call value can't hold type parameters or `where` clauses.
fn check_plain(method: &TraitItemFn) -> Result<()> {
    let signature = &method.sig;
    if let Some(keyword) = &signature.asyncness {
        let message = format!(
            "write `fn {}(..) -> impl Future<Output = Result<T>> + Send`: an `async fn` doesn't promise Send",
            signature.ident
        );
        return Err(Error::new(keyword.span, message));
    }
    if let Some(keyword) = &signature.unsafety {
        return Err(Error::new(keyword.span, "an operation can't be `unsafe`"));
    }
    if let Some(parameter) = signature.generics.params.first() {
        return Err(Error::new_spanned(
            parameter,
            "an operation has no parameters of its own: layers must be able to run the call again",
        ));
    }
    if let Some(clause) = &signature.generics.where_clause {
        let message = "an operation has no `where` clause: what it needs is a supertrait of the capability";
        return Err(Error::new_spanned(clause, message));
    }
    Ok(())
}

/// The parsed content of `#[operation(..)]`.
struct Attributes {
    kind: Ident,
    facts: Vec<Ident>,
    batch: Option<Ident>,
    then: Option<Ident>,
}

/// The words that may follow the kind. Each is a method of `Operation`.
const FACTS: [&str; 7] = ["harmless", "replayable", "overwrites", "operator", "closes", "backup", "endless"];

fn read_attribute(attribute: &Attribute) -> Result<Attributes> {
    const EXPECTED: &str = "expected `read`, `write` or `control`, then `harmless`, `replayable`, `overwrites`, `operator`, \
                            `closes`, `backup`, `endless`, `batch = argument` and `then = method` if they apply";
    let expected = |found: &dyn ToTokens| Error::new_spanned(found.to_token_stream(), EXPECTED);
    let meta = &attribute.meta;
    let list = meta.require_list().map_err(|_| expected(meta))?;
    let words = Punctuated::<Meta, Token![,]>::parse_terminated
        .parse2(list.tokens.clone())
        .map_err(|error| Error::new(error.span(), EXPECTED))?;
    let (mut kind, mut facts, mut batch, mut then) = (None, Vec::new(), None, None);
    for word in words {
        match &word {
            Meta::Path(path) if kind.is_none() && path.is_ident("read") => kind = Some("Read"),
            Meta::Path(path) if kind.is_none() && path.is_ident("write") => kind = Some("Write"),
            Meta::Path(path) if kind.is_none() && path.is_ident("control") => kind = Some("Control"),
            Meta::Path(path) if kind.is_some() && FACTS.iter().any(|fact| path.is_ident(fact)) => {
                facts.extend(path.get_ident().cloned());
            }
            Meta::NameValue(pair) if kind.is_some() && pair.path.is_ident("batch") => match &pair.value {
                Expr::Path(path) if path.path.get_ident().is_some() => {
                    batch = path.path.get_ident().cloned();
                }
                other => return Err(Error::new_spanned(other, "expected the name of an argument")),
            },
            Meta::NameValue(pair) if kind.is_some() && pair.path.is_ident("then") => match &pair.value {
                Expr::Path(path) if path.path.get_ident().is_some() => {
                    then = path.path.get_ident().cloned();
                }
                other => return Err(Error::new_spanned(other, "expected the name of a method of `Layer`")),
            },
            other => return Err(expected(other)),
        }
    }
    let kind = kind.ok_or_else(|| expected(meta))?;
    Ok(Attributes { kind: Ident::new(kind, Span::call_site()), facts, batch, then })
}

/// Refuses contradictory facts, which a layer would rely on.
fn check_facts(kind: &Ident, facts: &[Ident], receiver: Receiver, returns: &Returns) -> Result<()> {
    let has = |word: &str| facts.iter().any(|fact| fact == word);
    for fact in facts {
        let message = match fact.to_string().as_str() {
            "harmless" if kind != "Control" => {
                "only `control` can be `harmless`: a read always is, a write never is"
            }
            "overwrites" if kind == "Read" => "a read overwrites nothing",
            "overwrites" if has("replayable") || has("harmless") => {
                "`overwrites` excludes `replayable` and `harmless`: a write in between makes a repetition unsafe"
            }
            "replayable" | "overwrites" if receiver != Receiver::Shared => {
                "a transaction's operation is not repeated"
            }
            "closes" if kind != "Control" || receiver != Receiver::Shared => {
                "an operation that closes the store is `control` and takes `&self`"
            }
            "backup" if !matches!((kind == "Read", returns), (true, Returns::Stream(_))) => {
                "a backup is a `read` that returns a stream"
            }
            "endless" if !matches!(returns, Returns::Stream(_)) => "only a stream is `endless`",
            _ => continue,
        };
        return Err(Error::new(fact.span(), message));
    }
    Ok(())
}

/// The receiver, if a call value can hold it, and the other arguments.
pub(crate) fn split_receiver(signature: &Signature) -> (Option<Receiver>, impl Iterator<Item = &PatType>) {
    let receiver = signature.receiver().filter(|receiver| receiver.colon_token.is_none());
    let receiver = receiver.and_then(|receiver| match (&receiver.reference, &receiver.mutability) {
        (Some((_, None)), Some(_)) => Some(Receiver::Exclusive),
        (Some((_, None)), None) => Some(Receiver::Shared),
        (Some((_, Some(_))), _) => None,
        (None, _) => Some(Receiver::Consumed),
    });
    let arguments = signature.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(argument) => Some(argument),
        FnArg::Receiver(_) => None,
    });
    (receiver, arguments)
}

pub(crate) fn argument_name(argument: &PatType) -> Result<&Ident> {
    match &*argument.pat {
        Pat::Ident(name) => Ok(&name.ident),
        other => Err(Error::new_spanned(other, "an argument must be a plain name")),
    }
}

fn check_argument(kind: &Type) -> Result<()> {
    if let Some(found) = find_word(kind.to_token_stream(), "impl") {
        let message = "an operation's arguments have types that can be named: a layer holds them";
        return Err(Error::new(found.span(), message));
    }
    if let Some(found) = find_word(kind.to_token_stream(), "Self") {
        let message = "an operation's arguments can't mention `Self`, which is another type with layers";
        return Err(Error::new(found.span(), message));
    }
    Ok(())
}

/// Gives every elided lifetime this name.
pub(crate) struct ElidedLifetimes {
    name: &'static str,
    pub(crate) used: bool,
}

impl ElidedLifetimes {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, used: false }
    }

    fn lifetime(&mut self) -> Lifetime {
        self.used = true;
        Lifetime::new(self.name, Span::call_site())
    }
}

impl VisitMut for ElidedLifetimes {
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        if reference.lifetime.is_none() {
            reference.lifetime = Some(self.lifetime());
        }
        syn::visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = self.lifetime();
        }
    }

    // The arguments of a function type are borrowed for that function's call: `fn(&str)` is not changed.
    fn visit_type_bare_fn_mut(&mut self, _: &mut TypeBareFn) {}
    fn visit_parenthesized_generic_arguments_mut(&mut self, _: &mut ParenthesizedGenericArguments) {}
}

/// `T` of `impl Future<Output = Result<T>> + Send`.
fn read_return(signature: &Signature) -> Result<Returns> {
    let ReturnType::Type(_, returned) = &signature.output else {
        return Err(Error::new(signature.ident.span(), RETURNS));
    };
    let invalid = || Error::new_spanned(returned, RETURNS);
    let Type::ImplTrait(opaque) = &**returned else { return Err(invalid()) };
    let (mut result, mut send) = (None, false);
    for bound in &opaque.bounds {
        let segment = match bound {
            TypeParamBound::Trait(bound) => bound.path.segments.last(),
            _ => None,
        };
        match segment.map(|segment| (segment.ident.to_string(), segment)) {
            Some((name, segment)) if result.is_none() && name == "Future" => {
                result = Some((associated(segment, "Output").ok_or_else(invalid)?, false));
            }
            Some((name, segment)) if result.is_none() && name == "Stream" => {
                result = Some((associated(segment, "Item").ok_or_else(invalid)?, true));
            }
            Some((name, _)) if name == "Send" => send = true,
            _ => {
                let message = format!("a layer promises `Send` and no more: {RETURNS}");
                return Err(Error::new_spanned(bound, message));
            }
        }
    }
    let (result, stream) = result.ok_or_else(invalid)?;
    if !send {
        return Err(Error::new_spanned(returned, format!("missing `+ Send`: {RETURNS}")));
    }
    let value = value_of(result).ok_or_else(|| Error::new_spanned(result, RETURNS))?;
    Ok(if stream { Returns::Stream(value) } else { Returns::Future(value) })
}

/// `T` of `Result<T>`.
fn value_of(result: &Type) -> Option<Type> {
    let Type::Path(path) = result else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == "Result")?;
    let PathArguments::AngleBracketed(list) = &segment.arguments else { return None };
    match list.args.first()? {
        GenericArgument::Type(value) if list.args.len() == 1 => Some(value.clone()),
        _ => None,
    }
}

fn associated<'s>(segment: &'s PathSegment, name: &str) -> Option<&'s Type> {
    let PathArguments::AngleBracketed(list) = &segment.arguments else { return None };
    list.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(item) if item.ident == name => Some(&item.ty),
        _ => None,
    })
}

/// The first occurrence of this word.
pub(crate) fn find_word(tokens: TokenStream, word: &str) -> Option<Ident> {
    tokens.into_iter().find_map(|token| match token {
        TokenTree::Ident(ident) if ident == word => Some(ident),
        TokenTree::Group(group) => find_word(group.stream(), word),
        _ => None,
    })
}
