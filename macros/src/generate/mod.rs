//! Generates what a capability needs besides its trait: the calls of its operations, and its implementations
//! for types that stand around backends.

mod call;
mod either;
mod layered;
mod wrapped;

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};

use crate::{
    capability::{Capability, Kind, Method},
    operation::Returns,
};

impl Capability<'_> {
    /// Everything that follows the trait.
    pub(crate) fn generate(&self) -> TokenStream {
        let calls = self.methods.iter().filter_map(|method| match &method.kind {
            Kind::Operation(operation, returned) => match &operation.returns {
                Returns::Future(output) => Some(self.call(operation, output, *returned)),
                Returns::Stream(_) => None,
            },
            Kind::Forward { .. } => None,
        });
        let (layered, either) = (self.layered(), self.either());
        let wrapped = self.wrapper.as_ref().map(|name| (self.wrapper_trait(name), self.wrapped(name)));
        let (wrapper_trait, wrapped) = wrapped.unzip();
        quote! {
            #wrapper_trait
            const _: () = {
                #(#calls)*
                #layered
                #either
                #wrapped
            };
        }
    }

    /// An implementation of the trait. Every method of the trait is in it, also those with a default body:
    /// clippy refuses an implementation that lacks one.
    fn implementation(
        &self,
        parameters: &TokenStream,
        of: &TokenStream,
        condition: Option<TokenStream>,
        members: impl IntoIterator<Item = TokenStream>,
    ) -> TokenStream {
        let (name, members) = (&self.item.ident, members.into_iter());
        quote! {
            #[deny(clippy::missing_trait_methods)]
            impl<#parameters> #name for #of #condition { #(#members)* }
        }
    }

    /// `where Self: ..` with the supertraits, for types that have them only if their parts do.
    fn supertraits(&self) -> Option<TokenStream> {
        let supertraits = &self.item.supertraits;
        Some(quote!(where Self: #supertraits))
    }

    /// The path of gateway-storage with the span of the trait's name: the error of a supertrait that layers
    /// don't implement points there.
    fn krate_at_name(&self) -> TokenStream {
        let name = &self.item.ident;
        let at_name = self.krate.to_token_stream().into_iter().map(|mut token| {
            token.set_span(name.span().resolved_at(token.span()));
            token
        });
        at_name.collect()
    }
}

impl Method<'_> {
    /// The associated type that it returns, as an index of [`Capability::types`].
    fn returned(&self) -> Option<usize> {
        match &self.kind {
            Kind::Operation(_, returned) => *returned,
            Kind::Forward { .. } => None,
        }
    }
}
