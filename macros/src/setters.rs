//! Writes the setters of an options type.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, GenericArgument, ItemStruct, PathArguments, PathSegment, Result, Type, Visibility};

/// Types whose setter takes what converts into them. Not numbers: a literal has no type to convert from.
const CONVERTED: [&str; 5] = ["Key", "PathBuf", "Secret", "String", "Vec"];

pub(crate) fn expand(item: TokenStream) -> Result<TokenStream> {
    let item: ItemStruct = syn::parse2(item).map_err(|error| {
        Error::new(error.span(), format!("#[derive(Setters)] belongs on a struct: {error}"))
    })?;
    let public = item.fields.iter().filter(|field| matches!(field.vis, Visibility::Public(_)));
    let setters =
        public.filter_map(|field| field.ident.as_ref().map(|name| (name, &field.ty))).map(|(name, ty)| {
            let (setter, doc) =
                (format_ident!("with_{name}"), format!("Sets [`{name}`](field@Self::{name})."));
            let inner = option_of(ty);
            let set = inner.unwrap_or(ty);
            let (argument, mut value) = match last_segment(set) {
                Some(segment) if CONVERTED.iter().any(|converted| segment.ident == converted) => {
                    (quote!(impl ::std::convert::Into<#set>), quote!(#name.into()))
                }
                _ => (quote!(#set), quote!(#name)),
            };
            if inner.is_some() {
                value = quote!(::std::option::Option::Some(#value));
            }
            quote! {
                #[doc = #doc]
                #[must_use]
                pub fn #setter(mut self, #name: #argument) -> Self {
                    self.#name = #value;
                    self
                }
            }
        });
    let name = &item.ident;
    Ok(quote!(impl #name { #(#setters)* }))
}

fn last_segment(ty: &Type) -> Option<&PathSegment> {
    match ty {
        Type::Path(path) => path.path.segments.last(),
        // A type that another macro has read.
        Type::Group(group) => last_segment(&group.elem),
        _ => None,
    }
}

/// The type inside an `Option`.
fn option_of(ty: &Type) -> Option<&Type> {
    let segment = last_segment(ty).filter(|segment| segment.ident == "Option")?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    match arguments.args.first()? {
        GenericArgument::Type(inner) => Some(inner),
        _ => None,
    }
}
