//! Measures calls.

use std::{path::Path, pin::pin, time::Duration};

use gateway_storage::Result;
use testkit::{
    pins::{Column, Margin, Rows, Table},
    servers::proxy::Proxy,
};
use tokio::runtime::Runtime;

/// The calls before those that are measured: connections are open, statements are prepared, memory is grown.
const WARM_UP: usize = 5;

/// The calls that are measured. The least of their numbers counts: a check in the background only adds.
const MEASURED: usize = 5;

/// How often each call is made.
pub(crate) const CALLS: usize = WARM_UP + MEASURED;

/// A read that a driver gets in two parts can take a few allocations more.
const ALLOCATIONS: Margin = Margin { above: (3, 2), below: (10, 2) };

const SIZE: Margin = Margin { above: (5, 0), below: (10, 0) };

const COLUMNS: [Column; 5] = [
    Column { name: "allocations", margin: |_| ALLOCATIONS },
    Column { name: "requests", margin: |_| Margin::NONE },
    Column { name: "round trips", margin: |_| Margin::NONE },
    Column { name: "future's bytes", margin: |_| SIZE },
    Column { name: "through Storage", margin: |_| SIZE },
];

/// Measures the operations of one store.
pub(crate) struct Meter<'m> {
    runtime: &'m Runtime,
    proxy: Option<&'m Proxy>,
    rows: Rows,
}

impl<'m> Meter<'m> {
    pub(crate) fn new(runtime: &'m Runtime, proxy: Option<&'m Proxy>) -> Self {
        Self { runtime, proxy, rows: Rows::new() }
    }

    /// Runs something that is not measured.
    pub(crate) fn run<T>(&self, work: impl Future<Output = Result<T>>) -> T {
        self.runtime.block_on(work).expect("the preparation of an operation")
    }

    /// Measures a call through `Storage`, each time after `prepare`, and the sizes of its future and of that of the
    /// backend (`direct`). All of them get the number of the call.
    pub(crate) fn row<D, T>(
        &mut self,
        operation: &str,
        prepare: impl AsyncFn(usize) -> Result<()>,
        direct: impl Fn(usize) -> D,
        call: impl Fn(usize) -> T,
    ) where
        T: Future<Output: IntoOk>,
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

    /// The allocations, requests and round trips of one call.
    fn measure(&self, operation: &str, call: impl Future<Output: IntoOk>) -> [u64; 3] {
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/costs");
        let rewrite =
            format!("COSTS=write cargo test --features full,conformance,git-https --test costs {backend}");
        let title = format!("What a call of this backend costs: see main.rs. To write it anew:\n{rewrite}");
        let path = &folder.join(backend).with_extension("txt");
        let table = Table { path, title: &title, columns: &COLUMNS, rewrite: &rewrite };
        if let Err(faults) = table.check(&self.rows) {
            panic!("{backend}\n{faults}");
        }
    }
}

/// The result of a call, which must be a success.
pub(crate) trait IntoOk {
    fn check(self, operation: &str);
}

impl<T> IntoOk for Result<T> {
    fn check(self, operation: &str) {
        self.unwrap_or_else(|error| panic!("{operation}: {error:?}"));
    }
}
