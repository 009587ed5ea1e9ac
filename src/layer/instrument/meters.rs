//! The names of the metrics, and their handles by operation.

use std::{
    array,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Gauge, Histogram, Key, Label, Level, Metadata, SharedString, Unit, with_recorder};

use crate::layer::Operation;

pub(super) const DURATION: &str = "db.client.operation.duration";
pub(super) const BATCH_SIZE: &str = "gateway_storage.operation.batch.size";
const ACTIVE: &str = "gateway_storage.operation.active";
const RETRIES: &str = "gateway_storage.operation.retries";
pub(super) const CONNECTIONS: &str = "db.client.connection.count";
pub(super) const MAX_CONNECTIONS: &str = "db.client.connection.max";
pub(super) const PENDING_REQUESTS: &str = "db.client.connection.pending_requests";

/// The number of entries, which is more than the library has operations. An application's own operations
/// beyond this number share one entry.
const ENTRIES: usize = 128;
/// The conventions' name for operations without an entry of their own.
const OTHER: &str = "_OTHER";

pub(super) static METADATA: Metadata<'static> =
    Metadata::new("gateway_storage", Level::INFO, Some(module_path!()));

/// Registers descriptions of the metrics with the recorder.
pub(super) fn describe() {
    metrics::describe_histogram!(DURATION, Unit::Seconds, "Duration of database client operations.");
    metrics::describe_histogram!(BATCH_SIZE, Unit::Count, "Number of items per batch operation.");
    metrics::describe_gauge!(ACTIVE, Unit::Count, "Operations in progress.");
    metrics::describe_counter!(RETRIES, Unit::Count, "Retries of operations.");
    metrics::describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "Connections in the state given by the state attribute."
    );
    metrics::describe_gauge!(MAX_CONNECTIONS, Unit::Count, "The maximum number of open connections allowed.");
    metrics::describe_gauge!(PENDING_REQUESTS, Unit::Count, "Requests waiting for an open connection.");
}

/// A backend's name in the conventions, which name only PostgreSQL differently.
pub(crate) fn system_name(label: &'static str) -> &'static str {
    if label == "postgres" { "postgresql" } else { label }
}

/// What all spans and metrics of a store share, and the handles of each operation that was called.
pub(super) struct Table {
    pub(super) system: SharedString,
    pub(super) namespace: Option<Arc<str>>,
    entries: [OnceLock<Box<Meters>>; ENTRIES],
    other: OnceLock<Box<Meters>>,
}

impl Table {
    pub(super) fn new(label: &'static str, namespace: Option<&str>) -> Self {
        Self {
            system: SharedString::const_str(system_name(label)),
            namespace: namespace.map(Into::into),
            entries: array::from_fn(|_| OnceLock::new()),
            other: OnceLock::new(),
        }
    }

    /// Takes no lock, and allocates only at the first call of an operation.
    #[inline]
    pub(super) fn meters(&self, operation: Operation) -> &Meters {
        for probe in 0..ENTRIES {
            let entry = &self.entries[(operation.hash as usize + probe) % ENTRIES];
            let meters = entry.get_or_init(|| Box::new(Meters::new(self, operation.name)));
            if meters.name == operation.name {
                return meters;
            }
        }
        self.other.get_or_init(|| Box::new(Meters::new(self, OTHER)))
    }

    /// The labels of all metrics.
    pub(super) fn labels(&self) -> Vec<Label> {
        let namespace =
            self.namespace.clone().map(|name| Label::new("db.namespace", SharedString::from_shared(name)));
        [Label::new("db.system.name", self.system.clone())].into_iter().chain(namespace).collect()
    }
}

/// The span name, labels and metric handles of one operation.
pub(super) struct Meters {
    name: &'static str,
    pub(super) span_name: Box<str>,
    handles: OnceLock<Handles>,
    labels: Vec<Label>,
}

pub(super) struct Handles {
    pub(super) duration: Histogram,
    pub(super) batch_size: Histogram,
    pub(super) active: Gauge,
}

impl Meters {
    fn new(table: &Table, name: &'static str) -> Self {
        let span_name = match &table.namespace {
            Some(namespace) => format!("{name} {namespace}"),
            None => name.to_owned(),
        };
        let mut labels = table.labels();
        labels.push(Label::from_static_parts("db.operation.name", name));
        Self { name, span_name: span_name.into(), handles: OnceLock::new(), labels }
    }

    /// `None` until a recorder is installed.
    #[inline]
    pub(super) fn handles(&self, is_batch: bool) -> Option<&Handles> {
        self.handles.get().or_else(|| {
            with_recorder(|recorder| {
                // The facade does not say whether this is its no-op recorder, which is a type without fields.
                (size_of_val(recorder) > 0).then(|| {
                    let key = |name| Key::from_parts(name, self.labels.clone());
                    self.handles.get_or_init(|| Handles {
                        duration: recorder.register_histogram(&key(DURATION), &METADATA),
                        batch_size: match is_batch {
                            true => recorder.register_histogram(&key(BATCH_SIZE), &METADATA),
                            false => Histogram::noop(),
                        },
                        active: recorder.register_gauge(&key(ACTIVE), &METADATA),
                    })
                })
            })
        })
    }

    /// Errors have further labels. Their handles are looked up each time, because errors are rare.
    #[cold]
    pub(super) fn fail(&self, kind: &'static str, code: Option<&str>, elapsed: Duration) {
        let mut labels = self.labels.clone();
        labels.push(Label::from_static_parts("error.type", kind));
        labels.extend(code.map(|code| Label::new("db.response.status_code", code.to_owned())));
        let key = Key::from_parts(DURATION, labels);
        with_recorder(|recorder| recorder.register_histogram(&key, &METADATA)).record(elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::OperationKind;

    #[test]
    fn each_operation_has_an_entry_and_the_excess_shares_one() {
        let table = Table::new("postgres", Some("db|schema"));
        let names: Vec<&'static str> = (0..ENTRIES + 20).map(|n| &*format!("operation_{n}").leak()).collect();
        let meters = |name| table.meters(Operation::new(name, OperationKind::Read));
        for (n, name) in names.iter().enumerate() {
            assert_eq!(meters(name).name, if n < ENTRIES { name } else { OTHER });
        }
        assert_eq!(&*meters(names[3]).span_name, "operation_3 db|schema");
        assert!(std::ptr::eq(meters(names[3]), meters(names[3])));
    }
}
