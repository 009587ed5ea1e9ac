//! From a trait that is understood: its call values, and its forwarding through layers.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{Ident, Signature, TraitItemFn, Type, ext::IdentExt, spanned::Spanned};

use crate::{
    capability::{Capability, Target, Wrapped},
    operation::{Operation, Receiver},
};

impl Capability<'_> {
    pub(crate) fn wrapped_type(&self, Wrapped { name, wrapper }: &Wrapped<'_>) -> TokenStream {
        let capability = self.name;
        quote! { type #name = #wrapper<L, <B as #capability>::#name>; }
    }

    pub(crate) fn forward(
        &self,
        signature: &Signature,
        layer: Option<&TokenStream>,
        inner: &TokenStream,
        names: &[&Ident],
    ) -> TokenStream {
        let (capability, name) = (self.name, &signature.ident);
        let tell = layer.map(|layer| {
            quote! {
                ::gateway_storage::Layer::#name(#layer #(, ::core::clone::Clone::clone(&#names))*);
            }
        });
        quote! { #signature { #tell <B as #capability>::#name(#inner #(, #names)*) } }
    }

    /// The operation as a value.
    pub(crate) fn call(
        &self,
        operation: &Operation,
        output: &Type,
        wrapped: Option<&Wrapped<'_>>,
    ) -> TokenStream {
        let Operation { name, arguments, batch, .. } = operation;
        let (capability, call) = (self.name, call_name(name));
        let fields = arguments.iter().map(|(name, kind)| quote!(#name: #kind));
        // At the argument's type: an argument that is not Clone is an error there.
        let values = arguments
            .iter()
            .map(|(name, kind)| quote_spanned!(kind.span()=> ::core::clone::Clone::clone(&self.#name)));
        let (receiver, on) = match operation.receiver {
            Receiver::Shared => (quote!(&'on B), quote!(on)),
            Receiver::Exclusive => (quote!(&'on mut B), quote!(on)),
            Receiver::Consumed => (quote!(::gateway_storage::Owned<B>), quote!(on.0)),
        };
        let on_lifetime = (operation.receiver != Receiver::Consumed).then(|| quote!('on,));
        let output = match wrapped {
            Some(Wrapped { name, .. }) => quote!(<B as #capability>::#name),
            None => quote!(#output),
        };
        let batch_size = batch.as_ref().map(|items| {
            quote! {
                fn batch_size(&self) -> ::core::option::Option<usize> {
                    ::core::option::Option::Some(self.#items.len())
                }
                fn failure(output: &#output) -> ::core::option::Option<&::gateway_storage::Error> {
                    #[allow(unused_imports)]
                    use ::gateway_storage::layer::NoReport as _;
                    ::gateway_storage::layer::Outcomes(output).failure()
                }
            }
        });
        let borrows = operation.borrows.then(|| quote!(<'call>));
        let call_lifetime = operation.borrows.then(|| quote!('call,));
        let constant = constant(operation);
        quote! {
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
        }
    }

    /// The method of the layered implementation.
    pub(crate) fn around(
        &self,
        operation: &Operation,
        output: &Type,
        wrapped: Option<&Wrapped<'_>>,
        method: &TraitItemFn,
    ) -> TokenStream {
        let Operation { name, arguments, .. } = operation;
        let (inputs, call) = (&method.sig.inputs, call_name(name));
        let names = arguments.iter().map(|(name, _)| name);
        let parts = match operation.receiver {
            Receiver::Shared => quote!((self.layer(), self.inner())),
            Receiver::Exclusive => quote!(self.parts()),
            Receiver::Consumed => quote!(self.into_parts()),
        };
        let (layer, on) = match operation.receiver {
            Receiver::Shared | Receiver::Exclusive => (quote!(layer), quote!(inner)),
            Receiver::Consumed => (quote!(&layer), quote!(::gateway_storage::Owned(inner))),
        };
        let around = quote!(::gateway_storage::Layer::around(#layer, #on, call).await);
        let result = match wrapped {
            None => match &operation.then {
                None => around,
                Some(then) => quote! {
                    let mut output = #around?;
                    ::gateway_storage::Layer::#then(#layer, &mut output);
                    ::core::result::Result::Ok(output)
                },
            },
            Some(Wrapped { wrapper, .. }) => quote! {
                ::core::result::Result::Ok(#wrapper::new(::core::clone::Clone::clone(layer), #around?))
            },
        };
        // The call comes first: an argument may be named `layer`.
        quote! {
            #[inline]
            async fn #name(#inputs) -> ::gateway_storage::Result<#output> {
                let call = #call { #(#names),* };
                let (layer, inner) = #parts;
                #result
            }
        }
    }

    pub(crate) fn around_stream(&self, operation: &Operation, method: &TraitItemFn) -> TokenStream {
        let (capability, signature, constant) = (self.name, &method.sig, constant(operation));
        let name = &signature.ident;
        let names = operation.arguments.iter().map(|(name, _)| name);
        quote! {
            #signature {
                let items = <B as #capability>::#name(self.inner() #(, #names)*);
                ::gateway_storage::Layer::around_stream(self.layer(), #constant, items)
            }
        }
    }

    /// The trait for what is layered.
    pub(crate) fn implementation(&self, calls: &[TokenStream], members: &[TokenStream]) -> TokenStream {
        let name = self.name;
        // At the trait's name: a supertrait that layers don't have is an error there.
        let layered = match self.target {
            Target::Layered => quote_spanned!(name.span()=> ::gateway_storage::Layered<L, B>),
            Target::LayeredTransaction => {
                quote_spanned!(name.span()=> ::gateway_storage::LayeredTransaction<L, B>)
            }
        };
        quote! {
            const _: () = {
                #(#calls)*
                #[deny(clippy::missing_trait_methods)]
                impl<L: ::gateway_storage::Layer, B: #name> #name for #layered { #(#members)* }
            };
        }
    }
}

/// `get_credential` -> `GetCredentialCall`: with the suffix, no call hides a type of the trait's module.
fn call_name(name: &Ident) -> Ident {
    let words = name.unraw().to_string();
    let camel: String = words
        .split('_')
        .flat_map(|word| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)))
        .collect();
    format_ident!("{camel}Call", span = name.span())
}

/// The operation's constant. Inside a transaction it has a name of its own, so that telemetry tells them apart.
fn constant(operation: &Operation) -> TokenStream {
    let Operation { name, kind, replayable, receiver, .. } = operation;
    let name = name.unraw();
    let name = match receiver {
        Receiver::Exclusive => format!("transaction_{name}"),
        Receiver::Shared | Receiver::Consumed => name.to_string(),
    };
    quote!(::gateway_storage::Operation::new(#name, ::gateway_storage::OperationKind::#kind, #replayable))
}
