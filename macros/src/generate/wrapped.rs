//! The trait that wrappers implement, and the implementation for a backend with a wrapper around it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{FnArg, Ident, Receiver as SelfArgument, ReturnType, Signature, parse_quote, visit_mut::VisitMut};

use crate::{
    capability::{Capability, Method, Target},
    operation::{ElidedLifetimes, Receiver},
};

impl Capability<'_> {
    /// A trait with the methods of the capability, which have the backend inside as an argument and forward
    /// to it by default. An associated type, and the operation that returns it, have no default.
    pub(super) fn wrapper_trait(&self, name: &Ident) -> TokenStream {
        let (capability, visibility) = (&self.item.ident, &self.item.vis);
        let what = match self.target {
            Target::Layered => "backend",
            Target::LayeredTransaction => "transaction",
        };
        let about = format!(
            " [`{capability}`] for a wrapper: each method has the {what} inside as an argument, and forwards to \
             it unless it is overridden."
        );
        let types = self.types.iter().map(|associated| {
            let item = associated.item;
            quote!(#item)
        });
        let methods = self.methods.iter().map(|method| {
            let (inner, names) = (inner_name(method), &method.arguments);
            let signature = with_inner(method, &inner);
            let name = &signature.ident;
            let about = match method.returned() {
                None => format!(" [`{capability}::{name}`], by default of the {what} inside."),
                Some(_) => format!(" [`{capability}::{name}`]."),
            };
            let body = match method.returned() {
                None => quote!({ <Inner as #capability>::#name(#inner #(, #names)*) }),
                Some(_) => quote!(;),
            };
            quote! { #[doc = #about] #signature #body }
        });
        let missing = format!("the wrapper `{{Self}}` does not have the capability `{capability}`");
        quote! {
            #[doc = #about]
            #[diagnostic::on_unimplemented(message = #missing)]
            #visibility trait #name<Inner: #capability>: Sized { #(#types)* #(#methods)* }
        }
    }

    pub(super) fn wrapped(&self, wrapper: &Ident) -> TokenStream {
        let (capability, krate) = (&self.item.ident, &self.krate);
        let types = self.types.iter().map(|associated| {
            let of = &associated.item.ident;
            quote! { type #of = <__W as #wrapper<__B>>::#of; }
        });
        let methods = self.methods.iter().map(|method| {
            let (signature, names) = (&method.item.sig, &method.arguments);
            let name = &signature.ident;
            let parts = match method.receiver {
                Receiver::Shared => quote!(self.parts()),
                Receiver::Exclusive => quote!(self.parts_mut()),
                Receiver::Consumed => quote!(self.into_parts()),
            };
            quote! {
                #[inline]
                #signature {
                    let (__wrapper, __inner) = #parts;
                    <__W as #wrapper<__B>>::#name(__wrapper, __inner #(, #names)*)
                }
            }
        });
        let parameters = quote!(__W: #wrapper<__B>, __B: #capability);
        let of = quote!(#krate::wrap::Wrapped<__W, __B>);
        self.implementation(&parameters, &of, self.supertraits(), types.chain(methods))
    }
}

/// The name of the argument for the backend inside.
fn inner_name(method: &Method<'_>) -> Ident {
    let is_taken = method.arguments.iter().any(|argument| *argument == "inner");
    format_ident!("{}", if is_taken { "__inner" } else { "inner" })
}

/// The signature with this argument after the receiver. What it returns may be borrowed from both.
fn with_inner(method: &Method<'_>, name: &Ident) -> Signature {
    let mut signature = method.item.sig.clone();
    let mut elided = ElidedLifetimes::new("'inner");
    if let ReturnType::Type(_, returned) = &mut signature.output {
        // `impl Trait` has the lifetimes of all arguments.
        if !matches!(**returned, syn::Type::ImplTrait(_)) {
            elided.visit_type_mut(returned);
        }
    }
    let lifetime = elided.used.then(|| quote!('inner));
    if elided.used {
        signature.generics.params.insert(0, parse_quote!('inner));
    }
    let (receiver, inner): (SelfArgument, FnArg) = match method.receiver {
        Receiver::Shared => (parse_quote!(&#lifetime self), parse_quote!(#name: &#lifetime Inner)),
        Receiver::Exclusive => (parse_quote!(&#lifetime mut self), parse_quote!(#name: &#lifetime mut Inner)),
        Receiver::Consumed => (parse_quote!(self), parse_quote!(#name: Inner)),
    };
    let rest = signature.inputs.into_iter().skip(1);
    signature.inputs = [FnArg::Receiver(receiver), inner].into_iter().chain(rest).collect();
    signature
}
