//! Whole expansions, compared with the files in `snapshots/`.

use std::{env, fs, path::Path};

use crate::capability::expand;

/// Expands `snapshots/NAME.rs` and compares the result with `snapshots/NAME.expanded.rs`.
fn check(name: &str, arguments: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/snapshots");
    let source = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
    let (tokens, error) = expand(arguments.parse().unwrap(), source.parse().unwrap());
    assert!(error.is_none(), "{}", error.unwrap());
    let expanded = prettyplease::unparse(&syn::parse2(tokens).unwrap());

    let file = folder.join(format!("{name}.expanded.rs"));
    if env::var_os("BLESS").is_some() {
        fs::write(&file, &expanded).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    if let Some((line, (actual, wanted))) = first_difference(&expanded, &expected) {
        panic!(
            "the expansion of macros/src/tests/snapshots/{name}.rs has changed, first at line {line}:\n\
             - {wanted}\n+ {actual}\n\
             If that is intended, run `BLESS=1 cargo test -p gateway-storage-macros` and review the diff."
        );
    }
}

fn first_difference<'t>(actual: &'t str, wanted: &'t str) -> Option<(usize, (&'t str, &'t str))> {
    const END: &str = "(end of file)";
    let count = actual.lines().count().max(wanted.lines().count());
    let [actual, wanted] = [actual, wanted].map(|text| text.lines().chain(std::iter::repeat(END)));
    (1..).zip(actual.zip(wanted)).take(count).find(|(_, (actual, wanted))| actual != wanted)
}

#[test]
fn a_trait_of_backends() {
    check("backend", "wrapper = EverythingWrapper");
}

#[test]
fn a_crate_of_another_name() {
    check("renamed", "crate = crate::facade");
}

#[test]
fn a_trait_of_transactions() {
    check("transaction", "on = LayeredTransaction, wrapper = ChangesWrapper");
}

#[test]
fn setters_of_public_fields() {
    let source = "pub struct Options { pub count: u32, pub path: std::path::PathBuf, pub name: Option<String>, \
                  pub limit: Option<u32>, private: bool }";
    let tokens = crate::setters::expand(source.parse().unwrap()).unwrap();
    let expanded = prettyplease::unparse(&syn::parse2(tokens).unwrap());
    let signatures: Vec<&str> =
        expanded.lines().map(str::trim).filter(|line| line.contains("self")).collect();
    let wanted = [
        "pub fn with_count(mut self, count: u32) -> Self {",
        "self.count = count;",
        "self",
        "mut self,",
        "self.path = path.into();",
        "self",
        "pub fn with_name(mut self, name: impl ::std::convert::Into<String>) -> Self {",
        "self.name = ::std::option::Option::Some(name.into());",
        "self",
        "pub fn with_limit(mut self, limit: u32) -> Self {",
        "self.limit = ::std::option::Option::Some(limit);",
        "self",
    ];
    assert_eq!(signatures, wanted);
}
