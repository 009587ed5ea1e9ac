//! The implementation for `Either`: the call goes to the backend that is there.

use proc_macro2::TokenStream;
use quote::quote;

use crate::capability::{Capability, Kind, Method};

impl Capability<'_> {
    pub(super) fn either(&self) -> TokenStream {
        let (name, krate) = (&self.item.ident, &self.krate);
        let types = self.types.iter().map(|associated| {
            let of = &associated.item.ident;
            quote! { type #of = #krate::Either<<__A as #name>::#of, <__B as #name>::#of>; }
        });
        let methods = self.methods.iter().map(|method| self.on_either(method));
        let parameters = quote!(__A: #name, __B: #name);
        let of = quote!(#krate::Either<__A, __B>);
        self.implementation(&parameters, &of, self.supertraits(), types.chain(methods))
    }

    /// Not an async block, whose future would hold the arguments a second time.
    fn on_either(&self, method: &Method<'_>) -> TokenStream {
        let (capability, krate) = (&self.item.ident, &self.krate);
        let (signature, names) = (&method.item.sig, &method.arguments);
        let name = &signature.ident;
        let [left, right] = [quote!(__A), quote!(__B)]
            .map(|backend| quote!(<#backend as #capability>::#name(__on #(, #names)*)));
        let [left, right] = match (&method.kind, method.returned()) {
            (Kind::Forward { .. }, _) => [left, right],
            (Kind::Operation(..), None) => {
                [quote!(#krate::either::Run::Left(#left)), quote!(#krate::either::Run::Right(#right))]
            }
            (Kind::Operation(..), Some(_)) => [(left, quote!(Left)), (right, quote!(Right))].map(|(run, side)| {
                quote!(#krate::either::Run::#side(#krate::either::map_ok(#run, #krate::Either::#side)))
            }),
        };
        quote! {
            #[inline]
            #signature {
                match self {
                    #krate::Either::Left(__on) => #left,
                    #krate::Either::Right(__on) => #right,
                }
            }
        }
    }
}
