//! Programs that must not compile, and the compiler's messages.
//!
//! Each case is a program in `compile_fail/`, with the compiler's output beside it. Its first lines quote
//! sentences that the output must contain (`//~ sentence`): a bless (`TRYBUILD=overwrite`) can't lose them.

#![cfg(feature = "full")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    cases.sort();
    cases
}

#[test]
fn does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}

#[test]
fn the_message_says_what_matters() {
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy();
        let source = fs::read_to_string(&case).unwrap();
        let message = fs::read_to_string(case.with_extension("stderr")).unwrap();
        let mut sentences = source.lines().map_while(|line| line.strip_prefix("//~ ")).peekable();
        assert!(sentences.peek().is_some(), "{name} quotes no sentence");
        for sentence in sentences {
            assert!(message.contains(sentence), "{name}: missing: {sentence}\nin the output:\n{message}");
        }
    }
}
