//! Counts instructions per call: the operations run under callgrind, which writes its counts to a file and
//! begins again at each end of a phase. A phase is the preparation of an operation, or one call.

use std::{env, fs, hint::black_box, path::Path, process::Command};

use gateway_storage::Result;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    operations::{CALLS, Meter, Succeeds, WARM_UP},
    pins::Rows,
};

/// In the process that is counted.
pub(crate) struct Phases<'r> {
    pub(crate) runtime: &'r Runtime,
    /// The operations to count.
    pub(crate) wants: fn(&str) -> bool,
}

/// Callgrind knows it by its name.
#[inline(never)]
fn phase_ends(number: usize) {
    black_box(number);
}

impl Meter for Phases<'_> {
    fn runtime(&self) -> &Runtime {
        self.runtime
    }

    fn row<D, T>(
        &mut self,
        operation: &str,
        prepare: impl AsyncFn(usize) -> Result<()>,
        _: impl Fn(usize) -> D,
        call: impl Fn(usize) -> T,
    ) where
        T: Future<Output: Succeeds>,
    {
        if !(self.wants)(operation) {
            return;
        }
        let prepared = async {
            for number in 0..CALLS {
                prepare(number).await?;
            }
            for number in 0..WARM_UP {
                call(number).await.check(operation);
            }
            Ok(())
        };
        self.run(prepared);
        self.runtime.block_on(async {
            for number in WARM_UP..CALLS {
                phase_ends(number);
                call(number).await.check(operation);
            }
            phase_ends(CALLS);
        });
        println!("\noperation {operation}");
    }
}

/// Runs this program again with these arguments, and returns for each operation of its `Phases` the
/// instructions, in all threads, of the cheapest call: what happens in the background only adds. `name` is
/// what the names of the rows begin with.
pub(crate) fn count(name: &str, arguments: &[&str]) -> Rows {
    let folder = TempDir::new().unwrap();
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-before=*phase_ends*", "--dump-line=no"])
        .arg(format!("--callgrind-out-file={}", folder.path().join("out").display()))
        .arg(env::current_exe().unwrap())
        .args(arguments)
        .env(CHILD, name)
        .output()
        .expect("this needs valgrind: apt-get install valgrind");
    let [output, errors] = [&ran.stdout, &ran.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(ran.status.success(), "{output}{errors}");
    let operations = output.lines().filter_map(|line| line.strip_prefix("operation "));
    let rows: Rows = operations
        .enumerate()
        .map(|(at, operation)| {
            // The first phase of an operation is its preparation.
            let (calls, first) = (CALLS - WARM_UP, at * (CALLS - WARM_UP + 1) + 2);
            let counts =
                (first..first + calls).map(|phase| instructions(&folder.path().join(format!("out.{phase}"))));
            (format!("{name}/{operation}"), vec![counts.min().expect("calls")])
        })
        .collect();
    assert!(!rows.is_empty(), "{output}{errors}");
    rows
}

/// Set in the process that is counted.
pub(crate) const CHILD: &str = "COUNTED_BY_CALLGRIND";

/// The total of a file of callgrind.
fn instructions(path: &Path) -> u64 {
    let text = fs::read_to_string(path).expect("callgrind wrote the counts of a phase");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
    total.trim().parse().expect("a number")
}
