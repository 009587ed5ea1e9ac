//! Whole expansions, compared with the files in `snapshots/`.

use std::{env, fs, path::Path};

use crate::capability::expand;

/// Expands `snapshots/NAME.rs` and compares with `snapshots/NAME.expanded.rs`.
fn check(name: &str, arguments: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots");
    let source = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
    let (tokens, error) = expand(arguments.parse().unwrap(), source.parse().unwrap());
    assert!(error.is_none(), "{}", error.unwrap());
    let expanded = prettyplease::unparse(&syn::parse2(tokens).unwrap());

    let file = folder.join(format!("{name}.expanded.rs"));
    if env::var_os("BLESS").is_some() {
        fs::write(&file, &expanded).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    if let Some((line, (is, was))) = first_difference(&expanded, &expected) {
        panic!(
            "the expansion of macros/snapshots/{name}.rs has changed, first at line {line}:\n\
             - {was}\n+ {is}\n\
             If it is meant to: BLESS=1 cargo test -p gateway-storage-macros, and read the diff."
        );
    }
}

fn first_difference<'t>(is: &'t str, was: &'t str) -> Option<(usize, (&'t str, &'t str))> {
    const END: &str = "(end of file)";
    let count = is.lines().count().max(was.lines().count());
    let [is, was] = [is, was].map(|text| text.lines().chain(std::iter::repeat(END)));
    (1..).zip(is.zip(was)).take(count).find(|(_, (is, was))| is != was)
}

#[test]
fn a_trait_of_backends() {
    check("backend", "");
}

#[test]
fn a_crate_of_another_name() {
    check("renamed", "crate = crate::facade");
}

#[test]
fn a_trait_of_transactions() {
    check("transaction", "on = LayeredTransaction");
}
