//! The implementation for a layered backend: the layer gets each call.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::Type;

use super::call::call_name;
use crate::{
    capability::{Capability, Kind, Method, Target},
    operation::{Operation, Receiver, Returns},
};

impl Capability<'_> {
    pub(super) fn layered(&self) -> TokenStream {
        let (name, krate, here) = (&self.item.ident, &self.krate, self.krate_at_name());
        let layered = match self.target {
            Target::Layered => quote_spanned!(name.span()=> #here::layer::Layered<__L, __B>),
            Target::LayeredTransaction => {
                quote_spanned!(name.span()=> #here::layer::LayeredTransaction<__L, __B>)
            }
        };
        let types = self.types.iter().map(|associated| {
            let (of, layered) = (&associated.item.ident, &associated.layered);
            quote! { type #of = #layered<__L, <__B as #name>::#of>; }
        });
        let methods = self.methods.iter().map(|method| match &method.kind {
            Kind::Operation(operation, returned) => match &operation.returns {
                Returns::Future(output) => self.around(method, operation, output, *returned),
                Returns::Stream(_) => self.around_stream(method, operation),
            },
            Kind::Forward { calls_layer } => self.past(method, *calls_layer),
        });
        let parameters = quote!(__L: #krate::layer::Layer, __B: #name);
        self.implementation(&parameters, &layered, None, types.chain(methods))
    }

    /// An operation that returns a future.
    fn around(
        &self,
        method: &Method<'_>,
        operation: &Operation,
        output: &Type,
        returned: Option<usize>,
    ) -> TokenStream {
        let Operation { name, receiver, then, .. } = operation;
        let (krate, inputs, call) = (&self.krate, &method.item.sig.inputs, call_name(name));
        let names = &method.arguments;
        let parts = match receiver {
            Receiver::Shared => quote!((self.layer(), self.inner())),
            Receiver::Exclusive => quote!(self.parts()),
            Receiver::Consumed => quote!(self.into_parts()),
        };
        let (layer, on) = match receiver {
            Receiver::Shared | Receiver::Exclusive => (quote!(layer), quote!(inner)),
            Receiver::Consumed => (quote!(&layer), quote!(#krate::layer::Owned(inner))),
        };
        let around = quote!(#krate::layer::Layer::around(#layer, #on, call).await);
        let result = match (returned, then) {
            (None, None) => around,
            (None, Some(then)) => quote! {
                let mut output = #around?;
                #krate::layer::Layer::#then(#layer, &mut output);
                ::core::result::Result::Ok(output)
            },
            (Some(index), _) => {
                let layered = &self.types[index].layered;
                quote! {
                    ::core::result::Result::Ok(#layered::new(::core::clone::Clone::clone(layer), #around?))
                }
            }
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

    /// An operation that returns a stream.
    fn around_stream(&self, method: &Method<'_>, operation: &Operation) -> TokenStream {
        let (capability, krate) = (&self.item.ident, &self.krate);
        let (signature, constant, names) = (&method.item.sig, self.constant(operation), &method.arguments);
        let name = &signature.ident;
        quote! {
            #signature {
                let items = <__B as #capability>::#name(self.inner() #(, #names)*);
                #krate::layer::Layer::around_stream(self.layer(), #constant, items)
            }
        }
    }

    /// A method that goes past the layer to the backend.
    fn past(&self, method: &Method<'_>, calls_layer: bool) -> TokenStream {
        let (capability, krate) = (&self.item.ident, &self.krate);
        let (signature, names) = (&method.item.sig, &method.arguments);
        let name = &signature.ident;
        let (layer, inner) = match method.receiver {
            Receiver::Exclusive => (quote!(self.layer_mut()), quote!(self.inner_mut())),
            Receiver::Shared | Receiver::Consumed => (quote!(self.layer()), quote!(self.inner())),
        };
        let call_layer = calls_layer.then(|| {
            quote! {
                #krate::layer::Layer::#name(#layer #(, ::core::clone::Clone::clone(&#names))*);
            }
        });
        quote! { #signature { #call_layer <__B as #capability>::#name(#inner #(, #names)*) } }
    }
}
