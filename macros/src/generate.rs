//! Generates call values and the layered implementation of a parsed trait.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{Ident, Signature, TraitItemFn, Type, ext::IdentExt, spanned::Spanned};

use crate::{
    capability::{Capability, Target, Wrapped},
    operation::{Operation, Receiver},
};

impl Capability<'_> {
    pub(crate) fn wrapped_type(&self, Wrapped { name, wrapper }: &Wrapped<'_>) -> TokenStream {
        let capability = self.name;
        quote! { type #name = #wrapper<__L, <__B as #capability>::#name>; }
    }

    pub(crate) fn forward(
        &self,
        signature: &Signature,
        layer: Option<&TokenStream>,
        inner: &TokenStream,
        names: &[&Ident],
    ) -> TokenStream {
        let (capability, krate, name) = (self.name, &self.krate, &signature.ident);
        let call_layer = layer.map(|layer| {
            quote! {
                #krate::layer::Layer::#name(#layer #(, ::core::clone::Clone::clone(&#names))*);
            }
        });
        quote! { #signature { #call_layer <__B as #capability>::#name(#inner #(, #names)*) } }
    }

    /// The call value of an operation.
    pub(crate) fn call(
        &self,
        operation: &Operation,
        output: &Type,
        wrapped: Option<&Wrapped<'_>>,
    ) -> TokenStream {
        let Operation { name, arguments, batch, .. } = operation;
        let (capability, krate, call) = (self.name, &self.krate, call_name(name));
        let fields = arguments.iter().map(|(name, kind)| quote!(#name: #kind));
        // The span of the argument's type: the error of a type that is not `Clone` points there.
        let values = arguments
            .iter()
            .map(|(name, kind)| quote_spanned!(kind.span()=> ::core::clone::Clone::clone(&self.#name)));
        let (receiver, on) = match operation.receiver {
            Receiver::Shared => (quote!(&'__on __B), quote!(on)),
            Receiver::Exclusive => (quote!(&'__on mut __B), quote!(on)),
            Receiver::Consumed => (quote!(#krate::layer::Owned<__B>), quote!(on.0)),
        };
        let on_lifetime = (operation.receiver != Receiver::Consumed).then(|| quote!('__on,));
        let output = match wrapped {
            Some(Wrapped { name, .. }) => quote!(<__B as #capability>::#name),
            None => quote!(#output),
        };
        let values: Vec<_> = values.collect();
        let batch = batch.as_ref().map(|items| {
            quote! {
                fn batch_size(&self) -> ::core::option::Option<usize> {
                    ::core::option::Option::Some(self.#items.len())
                }
                fn failure(output: &#output) -> ::core::option::Option<&#krate::Error> {
                    #[allow(unused_imports)]
                    use #krate::layer::NoReport as _;
                    #krate::layer::Outcomes::<#output>::failure(output)
                }
            }
        });
        let in_part = operation.slice().map(|(items, item)| {
            let values = arguments
                .iter()
                .zip(&values)
                .map(|((name, _), value)| if name == items { quote!(&part) } else { value.clone() });
            // The span of the item's type: the error of a type that is not `Clone` points there.
            let clone = quote_spanned!(item.span()=> ::core::clone::Clone::clone(&self.#items[*at]));
            quote! {
                fn failed_items(
                    output: &mut #output,
                    again: impl ::core::ops::FnMut(&mut #krate::Error) -> bool,
                ) -> ::std::vec::Vec<usize> {
                    #[allow(unused_imports)]
                    use #krate::layer::NoReport as _;
                    #krate::layer::Outcomes::<#output>::failed_items(output, again)
                }
                async fn run_items(&self, on: #receiver, items: &[usize]) -> #krate::Result<#output> {
                    let part: ::std::vec::Vec<_> = items.iter().map(|at| #clone).collect();
                    <__B as #capability>::#name(#on #(, #values)*).await
                }
                fn merge_items(report: &mut #output, items: &[usize], result: #krate::Result<#output>) {
                    #[allow(unused_imports)]
                    use #krate::layer::NoReport as _;
                    #krate::layer::Outcomes::<#output>::merge_items(report, items, result);
                }
            }
        });
        let borrows = operation.borrows.then(|| quote!(<'__call>));
        let call_lifetime = operation.borrows.then(|| quote!('__call,));
        let constant = self.constant(operation);
        quote! {
            struct #call #borrows { #(#fields),* }
            impl<#on_lifetime #call_lifetime __B: #capability> #krate::layer::Call<#receiver> for #call #borrows {
                type Output = #output;
                const OPERATION: #krate::layer::Operation = #constant;
                #batch
                #[inline]
                async fn run(&self, on: #receiver) -> #krate::Result<#output> {
                    <__B as #capability>::#name(#on #(, #values)*).await
                }
                #in_part
            }
        }
    }

    /// The method of the layered implementation, for an operation that returns a future.
    pub(crate) fn around(
        &self,
        operation: &Operation,
        output: &Type,
        wrapped: Option<&Wrapped<'_>>,
        method: &TraitItemFn,
    ) -> TokenStream {
        let Operation { name, arguments, .. } = operation;
        let (krate, inputs, call) = (&self.krate, &method.sig.inputs, call_name(name));
        let names = arguments.iter().map(|(name, _)| name);
        let parts = match operation.receiver {
            Receiver::Shared => quote!((self.layer(), self.inner())),
            Receiver::Exclusive => quote!(self.parts()),
            Receiver::Consumed => quote!(self.into_parts()),
        };
        let (layer, on) = match operation.receiver {
            Receiver::Shared | Receiver::Exclusive => (quote!(layer), quote!(inner)),
            Receiver::Consumed => (quote!(&layer), quote!(#krate::layer::Owned(inner))),
        };
        let around = quote!(#krate::layer::Layer::around(#layer, #on, call).await);
        let result = match wrapped {
            None => match &operation.then {
                None => around,
                Some(then) => quote! {
                    let mut output = #around?;
                    #krate::layer::Layer::#then(#layer, &mut output);
                    ::core::result::Result::Ok(output)
                },
            },
            Some(Wrapped { wrapper, .. }) => quote! {
                ::core::result::Result::Ok(#wrapper::new(::core::clone::Clone::clone(layer), #around?))
            },
        };
        // The call is built first, because an argument may be named `layer`.
        quote! {
            #[inline]
            async fn #name(#inputs) -> #krate::Result<#output> {
                let call = #call { #(#names),* };
                let (layer, inner) = #parts;
                #result
            }
        }
    }

    /// The method of the layered implementation, for an operation that returns a stream.
    pub(crate) fn around_stream(&self, operation: &Operation, method: &TraitItemFn) -> TokenStream {
        let (capability, krate) = (self.name, &self.krate);
        let (signature, constant) = (&method.sig, self.constant(operation));
        let name = &signature.ident;
        let names = operation.arguments.iter().map(|(name, _)| name);
        quote! {
            #signature {
                let items = <__B as #capability>::#name(self.inner() #(, #names)*);
                #krate::layer::Layer::around_stream(self.layer(), #constant, items)
            }
        }
    }

    /// The implementation of the trait for the layered type.
    pub(crate) fn implementation(&self, calls: &[TokenStream], members: &[TokenStream]) -> TokenStream {
        let (name, krate) = (self.name, &self.krate);
        // The span of the trait's name: the error of a supertrait that layers don't implement points there.
        let at_name = krate.to_token_stream().into_iter().map(|mut token| {
            token.set_span(name.span().resolved_at(token.span()));
            token
        });
        let here: TokenStream = at_name.collect();
        let layered = match self.target {
            Target::Layered => quote_spanned!(name.span()=> #here::layer::Layered<__L, __B>),
            Target::LayeredTransaction => {
                quote_spanned!(name.span()=> #here::layer::LayeredTransaction<__L, __B>)
            }
        };
        quote! {
            const _: () = {
                #(#calls)*
                #[deny(clippy::missing_trait_methods)]
                impl<__L: #krate::layer::Layer, __B: #name> #name for #layered { #(#members)* }
            };
        }
    }

    /// The operation's constant. In a transaction it has a name of its own, so that telemetry distinguishes
    /// the two.
    fn constant(&self, operation: &Operation) -> TokenStream {
        let Operation { name, kind, facts, receiver, .. } = operation;
        let (krate, name) = (&self.krate, name.unraw());
        let (name, in_transaction) = match receiver {
            Receiver::Exclusive => (format!("transaction_{name}"), Some(quote!(.in_transaction()))),
            Receiver::Shared | Receiver::Consumed => (name.to_string(), None),
        };
        quote!(#krate::layer::Operation::new(#name, #krate::layer::OperationKind::#kind) #(.#facts())* #in_transaction)
    }
}

/// `get_credential` -> `__GetCredentialCall`. The prefix prevents a conflict with a type of the trait's
/// module.
fn call_name(name: &Ident) -> Ident {
    let words = name.unraw().to_string();
    let camel: String = words
        .split('_')
        .flat_map(|word| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)))
        .collect();
    format_ident!("__{camel}Call", span = name.span())
}
