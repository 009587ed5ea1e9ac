//! A whole trait: its call values and its forwarding through layers.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Error, FnArg, Ident, ItemTrait, Meta, Pat, Result, TraitItem, TraitItemFn, TraitItemType,
    Type, spanned::Spanned,
};

use crate::operation::{Operation, Receiver, Returns};

/// What the trait's layered implementation stands on.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    Layered,
    LayeredTransaction,
}

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let target = read_target(arguments)?;
    let mut item: ItemTrait = syn::parse2(item)
        .map_err(|error| Error::new(error.span(), format!("#[capability] belongs on a trait: {error}")))?;
    if let Some(parameter) = item.generics.params.first() {
        return Err(Error::new(
            parameter.span(),
            "a capability has no parameters: the backend is the only type",
        ));
    }

    let mut generated = Generated::new(item.ident.clone(), target);
    let mut errors: Option<Error> = None;
    for item in &mut item.items {
        if let Err(error) = generated.add(item) {
            match &mut errors {
                Some(errors) => errors.combine(error),
                None => errors = Some(error),
            }
        }
    }
    match errors {
        Some(errors) => Err(errors),
        None => Ok(generated.into_tokens(&item)),
    }
}

fn read_target(arguments: TokenStream) -> Result<Target> {
    if arguments.is_empty() {
        return Ok(Target::Layered);
    }
    let message = "expected `on = LayeredTransaction`, or nothing for a trait of backends";
    let pair: syn::MetaNameValue =
        syn::parse2(arguments.clone()).map_err(|_| Error::new(arguments.span(), message))?;
    match &pair.value {
        syn::Expr::Path(path) if pair.path.is_ident("on") && path.path.is_ident("LayeredTransaction") => {
            Ok(Target::LayeredTransaction)
        }
        _ => Err(Error::new(arguments.span(), message)),
    }
}

struct Generated {
    name: Ident,
    target: Target,
    /// Associated types that are wrapped when the trait is layered: their name and their wrapper.
    wrapped: Vec<(Ident, Type)>,
    calls: Vec<TokenStream>,
    members: Vec<TokenStream>,
}

impl Generated {
    fn new(name: Ident, target: Target) -> Self {
        Self { name, target, wrapped: Vec::new(), calls: Vec::new(), members: Vec::new() }
    }

    /// Takes our attributes off an item of the trait, and generates what they ask for.
    fn add(&mut self, item: &mut TraitItem) -> Result<()> {
        match item {
            TraitItem::Fn(method) => {
                let operation = take(&mut method.attrs, "operation");
                let forward = take(&mut method.attrs, "forward");
                match (operation, forward) {
                    (Some(attribute), None) => {
                        let operation = Operation::read(method, &attribute)?;
                        self.add_operation(method, &operation)
                    }
                    (None, Some(_)) => self.add_forward(method),
                    (Some(_), Some(both)) => {
                        Err(Error::new(both.span(), "a method is an operation, or passed through: not both"))
                    }
                    (None, None) => Err(Error::new(
                        method.sig.ident.span(),
                        "say what this is: `#[operation(read)]`, `#[operation(write)]`, `#[operation(control)]`, or \
                         `#[forward]` if layers have nothing to do with it",
                    )),
                }
            }
            TraitItem::Type(associated) => self.add_type(associated),
            other => Err(Error::new(other.span(), "a capability has methods and associated types only")),
        }
    }

    fn add_type(&mut self, associated: &mut TraitItemType) -> Result<()> {
        let Some(attribute) = take(&mut associated.attrs, "layered") else {
            return Err(Error::new(
                associated.ident.span(),
                "say what this is when the backend is layered: `#[layered(LayeredTransaction)]`",
            ));
        };
        let wrapper: Type = attribute.parse_args()?;
        let (capability, name) = (&self.name, &associated.ident);
        self.members.push(quote! { type #name = #wrapper<L, <B as #capability>::#name>; });
        self.wrapped.push((name.clone(), wrapper));
        Ok(())
    }

    fn add_forward(&mut self, method: &TraitItemFn) -> Result<()> {
        let signature = &method.sig;
        let name = &signature.ident;
        let inner = match signature.inputs.first() {
            Some(FnArg::Receiver(receiver))
                if receiver.reference.is_some() && self.target == Target::Layered =>
            {
                if receiver.mutability.is_some() { quote!(self.inner_mut()) } else { quote!(self.inner()) }
            }
            _ => {
                return Err(Error::new(
                    signature.span(),
                    "what is passed through takes `&self` or `&mut self`",
                ));
            }
        };
        let arguments = signature.inputs.iter().filter_map(|input| match input {
            FnArg::Typed(argument) => match &*argument.pat {
                Pat::Ident(name) => Some(name.ident.clone()),
                _ => None,
            },
            FnArg::Receiver(_) => None,
        });
        let capability = &self.name;
        self.members.push(quote! { #signature { <B as #capability>::#name(#inner #(, #arguments)*) } });
        Ok(())
    }

    fn add_operation(&mut self, method: &TraitItemFn, operation: &Operation) -> Result<()> {
        match (self.target, operation.receiver) {
            (Target::Layered, Receiver::Shared) => {}
            (Target::LayeredTransaction, Receiver::Exclusive | Receiver::Consumed) => {}
            (Target::Layered, _) => {
                let message =
                    "a backend's operation takes `&self`; only a transaction is changed or consumed";
                return Err(Error::new(method.sig.inputs.span(), message));
            }
            (Target::LayeredTransaction, _) => {
                let message =
                    "a transaction's operation takes `&mut self`, or `self` if it ends the transaction";
                return Err(Error::new(method.sig.inputs.span(), message));
            }
        }
        match &operation.returns {
            Returns::Future(output) => {
                self.add_call(operation, output);
                self.add_around(operation, output, method);
            }
            Returns::Stream => self.add_around_stream(operation, method),
        }
        Ok(())
    }

    /// The operation as a value.
    fn add_call(&mut self, operation: &Operation, output: &Type) {
        let Operation { name, arguments, batch, .. } = operation;
        let (capability, call) = (&self.name, call_name(name));
        let fields = arguments.iter().map(|(name, kind)| quote!(#name: #kind));
        let values = arguments.iter().map(|(name, _)| quote!(::core::clone::Clone::clone(&self.#name)));
        let (receiver, on) = match operation.receiver {
            Receiver::Shared => (quote!(&'on B), quote!(on)),
            Receiver::Exclusive => (quote!(&'on mut B), quote!(on)),
            Receiver::Consumed => (quote!(::gateway_storage::Owned<B>), quote!(on.0)),
        };
        let on_lifetime = (operation.receiver != Receiver::Consumed).then(|| quote!('on,));
        let output = match self.wrapper(output) {
            Some((name, _)) => quote!(<B as #capability>::#name),
            None => quote!(#output),
        };
        let batch_size = batch.as_ref().map(|items| {
            quote! { fn batch_size(&self) -> ::core::option::Option<usize> { ::core::option::Option::Some(self.#items.len()) } }
        });
        let borrows = borrows(operation).then(|| quote!(<'call>));
        let call_lifetime = borrows.as_ref().map(|_| quote!('call,));
        let constant = constant(operation);
        self.calls.push(quote! {
            struct #call #borrows { #(#fields),* }
            impl<#on_lifetime #call_lifetime B: #capability> ::gateway_storage::Call<#receiver> for #call #borrows {
                type Output = #output;
                const OPERATION: ::gateway_storage::Operation = #constant;
                #batch_size
                #[inline]
                async fn run(&self, on: #receiver) -> ::gateway_storage::Result<#output> {
                    <B as #capability>::#name(#on #(, #values)*).await
                }
            }
        });
    }

    /// The method of the layered implementation.
    fn add_around(&mut self, operation: &Operation, output: &Type, method: &TraitItemFn) {
        let Operation { name, arguments, .. } = operation;
        let call = call_name(name);
        let inputs = &method.sig.inputs;
        let names = arguments.iter().map(|(name, _)| name);
        let call = quote!(#call { #(#names),* });
        let body = match operation.receiver {
            Receiver::Shared => match self.wrapper(output) {
                None => quote!(::gateway_storage::Layer::around(self.layer(), self.inner(), #call).await),
                Some((_, wrapper)) => quote! {
                    let inner = ::gateway_storage::Layer::around(self.layer(), self.inner(), #call).await?;
                    ::core::result::Result::Ok(#wrapper::new(::core::clone::Clone::clone(self.layer()), inner))
                },
            },
            Receiver::Exclusive => quote! {
                let (layer, inner) = self.parts();
                ::gateway_storage::Layer::around(layer, inner, #call).await
            },
            Receiver::Consumed => quote! {
                let (layer, inner) = self.into_parts();
                ::gateway_storage::Layer::around(&layer, ::gateway_storage::Owned(inner), #call).await
            },
        };
        self.members.push(quote! {
            #[inline]
            async fn #name(#inputs) -> ::gateway_storage::Result<#output> { #body }
        });
    }

    fn add_around_stream(&mut self, operation: &Operation, method: &TraitItemFn) {
        let (capability, signature, constant) = (&self.name, &method.sig, constant(operation));
        let name = &signature.ident;
        let names = operation.arguments.iter().map(|(name, _)| name);
        self.members.push(quote! {
            #signature {
                let items = <B as #capability>::#name(self.inner() #(, #names)*);
                ::gateway_storage::Layer::around_stream(self.layer(), #constant, items)
            }
        });
    }

    /// The associated type that an operation returns as it is, and what wraps it.
    fn wrapper(&self, output: &Type) -> Option<(&Ident, &Type)> {
        let Type::Path(path) = output else { return None };
        let segments: Vec<_> = path.path.segments.iter().map(|segment| &segment.ident).collect();
        match segments[..] {
            [first, name] if first == "Self" => self
                .wrapped
                .iter()
                .find(|(wrapped, _)| wrapped == name)
                .map(|(name, wrapper)| (name, wrapper)),
            _ => None,
        }
    }

    fn into_tokens(self, item: &ItemTrait) -> TokenStream {
        let Self { name, target, calls, members, .. } = self;
        let layered = match target {
            Target::Layered => quote!(::gateway_storage::Layered<L, B>),
            Target::LayeredTransaction => quote!(::gateway_storage::LayeredTransaction<L, B>),
        };
        quote! {
            #item

            const _: () = {
                #(#calls)*
                #[deny(clippy::missing_trait_methods)]
                impl<L: ::gateway_storage::Layer, B: #name> #name for #layered { #(#members)* }
            };
        }
    }
}

/// Removes one of our attributes, and gives it.
fn take(attributes: &mut Vec<Attribute>, name: &str) -> Option<Attribute> {
    let at = attributes.iter().position(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident(name),
        Meta::List(list) => list.path.is_ident(name),
        Meta::NameValue(pair) => pair.path.is_ident(name),
    })?;
    Some(attributes.remove(at))
}

/// `get_credential` -> `GetCredentialCall`: with the suffix, no call hides a type of the trait's module.
fn call_name(name: &Ident) -> Ident {
    let words = name.to_string();
    let camel: String = words
        .split('_')
        .flat_map(|word| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)))
        .collect();
    format_ident!("{camel}Call", span = name.span())
}

fn borrows(operation: &Operation) -> bool {
    operation.arguments.iter().any(|(_, kind)| quote!(#kind).to_string().contains("'call"))
}

/// The operation's constant. Inside a transaction it has a name of its own, so that telemetry tells them apart.
fn constant(operation: &Operation) -> TokenStream {
    let Operation { name, kind, replayable, receiver, .. } = operation;
    let name = match receiver {
        Receiver::Exclusive => format!("transaction_{name}"),
        Receiver::Shared | Receiver::Consumed => name.to_string(),
    };
    quote!(::gateway_storage::Operation::new(#name, ::gateway_storage::OperationKind::#kind, #replayable))
}
