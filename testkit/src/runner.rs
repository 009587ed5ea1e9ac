//! Runs the tests of a program without libtest, which can then also run itself as a process to be killed.

use std::{panic::catch_unwind, time::Instant};

/// The name and the function of a test.
pub type Test = (&'static str, fn());

/// Runs the tests whose names contain one of these arguments, or all of them, and prints what libtest prints.
/// The process ends with 101 if one fails.
pub fn run(tests: &[Test], arguments: impl IntoIterator<Item = String>) {
    let arguments: Vec<String> = arguments.into_iter().collect();
    // Passed by `cargo test -- --list` and by other test runners.
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return println!("\n{} tests, 0 benchmarks", tests.len());
    }
    // As in libtest, words without dashes are filters.
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let wanted: Vec<_> = tests.iter().filter(|(name, _)| is_wanted(name)).collect();
    println!("\nrunning {} tests", wanted.len());
    let (begun, mut failed) = (Instant::now(), 0);
    for (name, test) in &wanted {
        let passed = catch_unwind(test).is_ok();
        failed += usize::from(!passed);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        wanted.len() - failed,
        tests.len() - wanted.len(),
        begun.elapsed().as_secs_f64()
    );
    if failed > 0 {
        std::process::exit(101);
    }
}
