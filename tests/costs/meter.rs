//! Measures allocations, requests, round trips and sizes.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use gateway_storage::Result;
use testkit::{
    pins::{Column, Margin, Rows, Table},
    servers::proxy::Proxy,
};
use tokio::runtime::Runtime;

use super::operations::{CALLS, Meter, Succeeds, WARM_UP};

/// Only large replies vary, with the parts in which a driver reads them: by up to 1.3 percent in five runs.
const ALLOCATIONS: Margin = Margin { above: (3, 0), below: (10, 2) };

const SIZE: Margin = Margin { above: (5, 0), below: (10, 0) };

pub(crate) const COLUMNS: [Column; 5] = [
    Column { name: "allocations", margin: |_| ALLOCATIONS },
    Column { name: "requests", margin: |_| Margin::NONE },
    Column { name: "round trips", margin: |_| Margin::NONE },
    Column { name: "future's bytes", margin: |_| SIZE },
    Column { name: "through Storage", margin: |_| SIZE },
];

/// Everything but instructions.
pub(crate) struct Costs<'m> {
    runtime: &'m Runtime,
    proxy: Option<&'m Proxy>,
    rows: Rows,
}

impl Meter for Costs<'_> {
    fn runtime(&self) -> &Runtime {
        self.runtime
    }

    /// The least numbers of the calls count, because a check in the background only adds.
    fn row<D, T>(
        &mut self,
        operation: &str,
        prepare: impl AsyncFn(usize) -> Result<()>,
        direct: impl Fn(usize) -> D,
        call: impl Fn(usize) -> T,
    ) where
        T: Future<Output: Succeeds>,
    {
        let mut least = [u64::MAX; 3];
        for number in 0..CALLS {
            self.run(prepare(number));
            self.settle();
            let found = self.measure(operation, call(number));
            self.settle();
            if number >= WARM_UP {
                least = std::array::from_fn(|at| least[at].min(found[at]));
            }
        }
        let sizes = [size_of_val(&direct(0)) as u64, size_of_val(&call(0)) as u64];
        self.rows.insert(operation.to_owned(), least.into_iter().chain(sizes).collect());
    }
}

impl<'m> Costs<'m> {
    pub(crate) fn new(runtime: &'m Runtime, proxy: Option<&'m Proxy>) -> Self {
        Self { runtime, proxy, rows: Rows::new() }
    }

    /// The allocations, requests and round trips of one call.
    fn measure(&self, operation: &str, call: impl Future<Output: Succeeds>) -> [u64; 3] {
        let before = self.proxy.map(Proxy::traffic).unwrap_or_default();
        // Pinned here, because the runtime would allocate for a large one.
        let (mut call, mut output) = (pin!(call), None);
        let memory = allocation_counter::measure(|| output = Some(self.runtime.block_on(call.as_mut())));
        let after = self.proxy.map(Proxy::traffic).unwrap_or_default();
        output.expect("it ran").check(operation);
        let requests = after.requests - before.requests;
        [memory.count_total, requests, after.round_trips - before.round_trips]
    }

    /// Waits until a call that ended has nothing left to send, such as the end of an export that was dropped.
    fn settle(&self) {
        let Some(proxy) = self.proxy else { return };
        self.runtime.block_on(async {
            let mut before = None;
            while before != Some(proxy.traffic()) {
                before = Some(proxy.traffic());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }

    /// Compares what was measured with the table of the backend.
    pub(crate) fn check(self, backend: &str) {
        let title = "What a call of this backend costs: see main.rs";
        check(backend, title, &COLUMNS, &self.rows);
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/costs").join(name).with_extension("txt")
}

/// The pinned costs of a backend.
pub(crate) fn table(backend: &str) -> Rows {
    Table { path: &path(backend), title: "", columns: &COLUMNS, rewrite: "" }.read()
}

/// Compares with the table of this name. Panics if a number is outside its margin.
pub(crate) fn check(name: &str, title: &str, columns: &[Column], rows: &Rows) {
    let path = path(name);
    let backend = name.split('-').next().unwrap_or(name);
    let rewrite =
        format!("COSTS=write cargo test --features full,conformance,git-https --test costs {backend}");
    let title = format!("{title}. To write it anew:\n{rewrite}");
    if let Err(faults) = (Table { path: &path, title: &title, columns, rewrite: &rewrite }).check(rows) {
        panic!("{name}\n{faults}");
    }
}
