//! The operations of each capability, on a store with a hundred credentials and usage records and some
//! config values.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    time::Duration,
};

use futures_util::StreamExt;
use gateway_storage::{
    Backend, CacheStore, ConfigBatch, ConfigStore, ConfigValue, Credential, CredentialStore, Exportable,
    Increment, Key, Record, Result, Storage, Transaction, Transactional, UsageStore,
    history::DocumentKind,
    lease::{Claim, Holder, Lease, Leases},
    list::ListOptions,
    plan::{ApplyOptions, AuditFilter, Mutation, Plan, RollbackOptions},
    revision::{Condition, Conditional, Revision},
};
use serde_json::json;

use tokio::runtime::Runtime;

/// The calls before those that are measured: connections are open, statements are prepared, memory is grown.
pub(crate) const WARM_UP: usize = 5;

/// How often each call is made in all.
pub(crate) const CALLS: usize = 10;

/// Measures the operations of one store.
pub(crate) trait Meter {
    /// The runtime of the store.
    fn runtime(&self) -> &Runtime;

    /// Runs something that is not measured.
    fn run<T>(&self, work: impl Future<Output = Result<T>>) {
        self.runtime().block_on(work).expect("the preparation of an operation");
    }

    /// Measures a call through `Storage`, each time after `prepare`; `direct` is the same call of the backend
    /// itself. All of them get the number of the call.
    fn row<D, T>(
        &mut self,
        operation: &str,
        prepare: impl AsyncFn(usize) -> Result<()>,
        direct: impl Fn(usize) -> D,
        call: impl Fn(usize) -> T,
    ) where
        T: Future<Output: Succeeds>;
}

/// The result of a call, which must be a success.
pub(crate) trait Succeeds {
    fn check(self, operation: &str);
}

impl<T> Succeeds for Result<T> {
    fn check(self, operation: &str) {
        self.unwrap_or_else(|error| panic!("{operation}: {error:?}"));
    }
}

const BATCH: usize = 100;

/// The mutations of a plan.
const PLANNED: usize = 10;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn keys(name: &str, count: usize) -> Vec<Key> {
    (0..count).map(|n| key(&format!("{name}-{n:03}"))).collect()
}

/// An OAuth credential of some 600 bytes of JSON.
fn credential() -> Credential {
    let fields = json!({
        "access_token": "x".repeat(218), "refresh_token": "y".repeat(103), "client_id": "z".repeat(72),
        "client_secret": "GOCSPX-0123456789", "expiry": "2026-12-31T23:59:59Z", "project_id": "project-0001",
        "token_uri": "https://oauth2.googleapis.com/token", "scope": "cloud-platform",
    });
    fields.try_into().unwrap()
}

fn value() -> ConfigValue {
    json!({ "models": ["gemini-2.5-pro", "gemini-2.5-flash"], "retries": 3 }).try_into().unwrap()
}

/// The ten records after one of a store.
fn page() -> ListOptions {
    ListOptions::default().with_after(Key::from_static("a")).with_limit(10)
}

/// Nothing has to be done before a call.
async fn nothing(_: usize) -> Result<()> {
    Ok(())
}

pub(crate) fn credentials<B: CredentialStore>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, id, value) = (on.backend(), &key("id-000"), &credential());
    let with_value = |ids: &[Key]| ids.iter().map(|id| (id.clone(), value.clone())).collect::<Vec<_>>();
    let (ids, one, many) = (&keys("id", BATCH), &keys("one", CALLS), &keys("many", CALLS * BATCH));
    let stored = &with_value(ids);
    let batch = |n| &many[n * BATCH..][..BATCH];

    meter.run(async { on.set_credentials(stored).await?.complete() });
    meter.row("get_credential", nothing, |_| bare.get_credential(id), |_| on.get_credential(id));
    meter.row(
        "set_credential",
        nothing,
        |_| bare.set_credential(id, value),
        |_| on.set_credential(id, value.clone()),
    );
    meter.row("list_credentials", nothing, |_| bare.list_credentials(), |_| on.list_credentials());
    meter.row("get_credentials", nothing, |_| bare.get_credentials(ids), |_| on.get_credentials(ids));
    meter.row("set_credentials", nothing, |_| bare.set_credentials(stored), |_| on.set_credentials(stored));
    meter.row(
        "stream_credentials",
        nothing,
        |_| bare.stream_credentials(page()),
        |_| async { pin!(on.stream_credentials(page())).next().await.expect("a credential") },
    );
    meter.row(
        "delete_credential",
        async |n| on.set_credential(&one[n], value.clone()).await,
        |n| bare.delete_credential(&one[n]),
        |n| on.delete_credential(&one[n]),
    );
    meter.row(
        "delete_credentials",
        async |n| on.set_credentials(&with_value(batch(n))).await?.complete().map(drop),
        |n| bare.delete_credentials(batch(n)),
        |n| on.delete_credentials(batch(n)),
    );
}

pub(crate) fn configs<B: ConfigStore>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, key, value, one) = (on.backend(), &key("config-000"), &value(), &keys("one", CALLS));

    let names = &keys("config", PLANNED);
    let values: &Vec<_> = &names.iter().map(|key| (key.clone(), value.clone())).collect();

    meter.run(async { on.set_configs(values).await?.complete() });
    meter.row("get_config", nothing, |_| bare.get_config(key), |_| on.get_config(key));
    meter.row("set_config", nothing, |_| bare.set_config(key, value), |_| on.set_config(key, value.clone()));
    meter.row("get_configs", nothing, |_| bare.get_configs(names), |_| on.get_configs(names));
    meter.row("set_configs", nothing, |_| bare.set_configs(values), |_| on.set_configs(values));
    meter.row(
        "stream_configs",
        nothing,
        |_| bare.stream_configs(page()),
        |_| async { pin!(on.stream_configs(page())).next().await.expect("a value") },
    );
    meter.row("list_configs", nothing, |_| bare.list_configs(), |_| on.list_configs());
    meter.row(
        "delete_config",
        async |n| on.set_config(&one[n], value.clone()).await,
        |n| bare.delete_config(&one[n]),
        |n| on.delete_config(&one[n]),
    );
}

pub(crate) fn conditional<B: Conditional>(meter: &mut impl Meter, on: &Storage<B>) {
    let kind = DocumentKind::Credential;
    let (bare, id, one) = (on.backend(), &key("id-001"), &keys("if", CALLS));
    let record = |id: &Key| Record::Credential { id: id.clone(), credential: credential() };
    let (record, new): (&Record, &Vec<Record>) = (&record(id), &one.iter().map(record).collect());
    let revision = Cell::new(Revision::of(b""));

    meter.row(
        "get_with_revision",
        nothing,
        |_| bare.get_with_revision(kind, id),
        |_| on.get_credential_with_revision(id),
    );
    meter.row(
        "set_if",
        async |_| {
            revision.set(on.get_credential_with_revision(id).await?.1);
            Ok(())
        },
        |_| bare.set_if(record, Condition::Unchanged(revision.get())),
        |_| bare.set_if(record, Condition::Unchanged(revision.get())),
    );
    meter.row(
        "delete_if",
        async |n| {
            revision.set(bare.set_if(&new[n], Condition::Absent).await?);
            Ok(())
        },
        |n| bare.delete_if(kind, &one[n], revision.get()),
        |n| on.delete_credential_if(&one[n], revision.get()),
    );
}

pub(crate) fn leases<B: Leases>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, held, new) = (on.backend(), &key("lease"), &keys("lease", CALLS));
    let (holder, other, ttl) = (&Holder::random(), &Holder::random(), Duration::from_secs(600));
    let lease = RefCell::new(None);
    let claimed = async |name: &Key| {
        if let Claim::Yours(claimed) = bare.claim_lease(name, holder, ttl).await? {
            lease.replace(Some(claimed));
        }
        Ok(())
    };
    let lease = || lease.borrow().clone().unwrap();

    meter.row(
        "claim_lease",
        nothing,
        |n| bare.claim_lease(&new[n], holder, ttl),
        |n| on.claim_lease(&new[n], holder, ttl),
    );
    meter.run(claimed(held));
    meter.row(
        "claim_lease_of_another",
        nothing,
        |_| bare.claim_lease(held, other, ttl),
        |_| on.claim_lease(held, other, ttl),
    );
    let kept = &lease();
    meter.row("renew_lease", nothing, |_| bare.renew_lease(kept, ttl), |_| on.renew_lease(kept, ttl));
    meter.row("list_leases", nothing, |_| bare.list_leases(), |_| on.list_leases());
    let all: &Vec<Lease> = &new
        .iter()
        .map(|name| {
            meter.run(claimed(name));
            lease()
        })
        .collect();
    meter.row(
        "release_lease",
        nothing,
        |n| bare.release_lease(&all[n], Duration::ZERO),
        |n| on.release_lease(&all[n], Duration::ZERO),
    );
}

/// Plans that change all stored config values.
pub(crate) fn plans<B: ConfigBatch>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, value) = (on.backend(), &value());
    let mutations: Vec<_> = keys("config", PLANNED).iter().map(|key| Mutation::set(key, value)).collect();
    let plan = &Plan::new(mutations).unwrap();
    let [new, applied] = &["new", "applied"].map(|name| keys(name, CALLS));
    let (apply, back) = (&ApplyOptions::default(), &RollbackOptions::default());

    meter.row(
        "apply_plan",
        nothing,
        |n| bare.apply_plan(&new[n], plan, apply),
        |n| on.apply_plan(&new[n], plan, apply),
    );
    meter.row(
        "apply_plan_again",
        nothing,
        |n| bare.apply_plan(&new[n], plan, apply),
        |n| on.apply_plan(&new[n], plan, apply),
    );
    meter.row(
        "rollback_plan",
        async |n| on.apply_plan(&applied[n], plan, apply).await.map(drop),
        |n| bare.rollback_plan(&applied[n], back),
        |n| on.rollback_plan(&applied[n], back),
    );
    meter.row(
        "audit_plans",
        nothing,
        |_| bare.audit_plans(AuditFilter::default()),
        |_| async { pin!(on.audit_plans(AuditFilter::default())).next().await.expect("an entry") },
    );
}

pub(crate) fn usage<B: UsageStore>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, key, field) = (on.backend(), &key("usage-000"), &key("requests"));
    let steps: &Vec<_> = &keys("usage", BATCH).iter().map(|key| Increment::new(key, field, 1)).collect();
    let (one, names) = (&keys("one", CALLS), &keys("usage", BATCH));
    let few: &[Increment] = &steps[..5];

    meter.run(async { on.increment_many(steps).await?.complete() });
    meter.row(
        "increment_usage",
        nothing,
        |_| bare.increment_usage(key, field, 1),
        |_| on.increment_usage(key, field, 1),
    );
    meter.row(
        "increment_within",
        nothing,
        |_| bare.increment_within(key, field, 1, 1_000_000),
        |_| on.increment_within(key, field, 1, 1_000_000),
    );
    meter.row(
        "increment_within_refused",
        nothing,
        |_| bare.increment_within(key, field, 1, 0),
        |_| on.increment_within(key, field, 1, 0),
    );
    meter.row("increment_many", nothing, |_| bare.increment_many(steps), |_| on.increment_many(steps));
    meter.row("increment_many_of_5", nothing, |_| bare.increment_many(few), |_| on.increment_many(few));
    meter.row("get_counter", nothing, |_| bare.get_counter(key, field), |_| on.get_counter(key, field));
    meter.row("get_usages", nothing, |_| bare.get_usages(names), |_| on.get_usages(names));
    meter.row(
        "stream_usage",
        nothing,
        |_| bare.stream_usage(page()),
        |_| async { pin!(on.stream_usage(page())).next().await.expect("a record") },
    );
    meter.row("get_usage", nothing, |_| bare.get_usage(key), |_| on.get_usage(key));
    meter.row("list_usage", nothing, |_| bare.list_usage(), |_| on.list_usage());
    meter.row(
        "reset_usage",
        async |n| on.increment_usage(&one[n], field, 1).await.map(drop),
        |n| bare.reset_usage(&one[n]),
        |n| on.reset_usage(&one[n]),
    );
    meter.row(
        "reset_usage_prefix",
        async |n| on.increment_usage(&one[n], field, 1).await.map(drop),
        |n| bare.reset_usage_prefix(&one[n]),
        |n| on.reset_usage_prefix(&one[n]),
    );
}

pub(crate) fn cache<B: CacheStore>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, key, bytes, ttl) = (on.backend(), &key("cached"), &[b'x'; 1000], Duration::from_secs(600));
    let one = &keys("one", CALLS);
    let values: &Vec<_> = &one.iter().map(|key| (key.clone(), bytes.to_vec())).collect();

    meter.row("set_cache", nothing, |_| bare.set_cache(key, bytes, ttl), |_| on.set_cache(key, bytes, ttl));
    meter.row("get_cache", nothing, |_| bare.get_cache(key), |_| on.get_cache(key));
    meter.row(
        "set_cache_if_absent",
        nothing,
        |_| bare.set_cache_if_absent(key, bytes, ttl),
        |_| on.set_cache_if_absent(key, bytes, ttl),
    );
    meter.row("get_cache_many", nothing, |_| bare.get_cache_many(one), |_| on.get_cache_many(one));
    meter.row(
        "set_cache_many",
        nothing,
        |_| bare.set_cache_many(values, ttl),
        |_| on.set_cache_many(values.iter().cloned(), ttl),
    );
    meter.row("get_cache_entry", nothing, |_| bare.get_cache_entry(key), |_| on.get_cache_entry(key));
    meter.row(
        "delete_cache",
        async |n| on.set_cache(&one[n], bytes, ttl).await,
        |n| bare.delete_cache(&one[n]),
        |n| on.delete_cache(&one[n]),
    );
}

/// A transaction that reads a value and changes it.
pub(crate) fn transactions<B: Transactional>(meter: &mut impl Meter, on: &Storage<B>) {
    async fn update(mut tx: impl Transaction, key: &Key, value: &ConfigValue) -> Result<()> {
        tx.get_config(key).await?;
        tx.set_config(key, value).await?;
        tx.commit().await
    }
    let (bare, key, value) = (on.backend(), &key("config-000"), &value());
    meter.row(
        "transaction",
        nothing,
        |_| async { update(bare.begin().await?, key, value).await },
        |_| async { update(on.begin().await?, key, value).await },
    );
}

/// The first page of an export, and an import.
pub(crate) fn export<B: Exportable>(meter: &mut impl Meter, on: &Storage<B>) {
    let (bare, credential, value) = (on.backend(), credential(), value());
    let mut records: Vec<Record> = Vec::new();
    for key in keys("imported", BATCH / 2) {
        records.push(Record::Credential { id: key.clone(), credential: credential.clone() });
        records.push(Record::Config { key, value: value.clone() });
    }
    let records = &records[..];

    meter.row(
        "export",
        nothing,
        |_| bare.export(),
        |_| async { pin!(on.export()).next().await.expect("a record") },
    );
    meter.row(
        "import",
        nothing,
        |_| bare.import(records),
        |_| async { on.backend().import(records).await?.complete() },
    );
    meter.row(
        "export_prefix",
        nothing,
        |_| bare.export_prefix("imported".to_owned()),
        |_| async { pin!(on.export_prefix("imported")).next().await.expect("a record") },
    );
}

pub(crate) fn backend<B: Backend>(meter: &mut impl Meter, on: &Storage<B>) {
    let bare = on.backend();
    meter.row("health", nothing, |_| bare.health(), |_| on.health());
    meter.row("stats", nothing, |_| bare.stats(), |_| on.stats());
}
