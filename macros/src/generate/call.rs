//! The call value of an operation.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{Ident, Type, ext::IdentExt, spanned::Spanned};

use crate::{
    capability::Capability,
    operation::{Operation, Receiver},
};

impl Capability<'_> {
    /// The type and its implementation of `Call`.
    pub(super) fn call(&self, operation: &Operation, output: &Type, returned: Option<usize>) -> TokenStream {
        let Operation { name, arguments, batch, .. } = operation;
        let (capability, krate, call) = (&self.item.ident, &self.krate, call_name(name));
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
        let output = match returned {
            Some(index) => {
                let name = &self.types[index].item.ident;
                quote!(<__B as #capability>::#name)
            }
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

    /// The operation's constant. In a transaction it has a name of its own, so that telemetry distinguishes
    /// the two.
    pub(super) fn constant(&self, operation: &Operation) -> TokenStream {
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
pub(super) fn call_name(name: &Ident) -> Ident {
    let words = name.unraw().to_string();
    let camel: String = words
        .split('_')
        .flat_map(|word| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)))
        .collect();
    format_ident!("__{camel}Call", span = name.span())
}
