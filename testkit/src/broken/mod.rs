//! A backend that is `Memory` with one fault. Most of the faults were seen in the Go program gcli2api-go.

mod conditional;
mod leases;
mod plans;
mod streams;
mod transactions;
mod usage;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use gateway_storage::{
    Backend, BatchReport, CacheEntry, CacheStore, ConfigStore, ConfigValue, Credential, CredentialStore,
    Error, ErrorKind, Exportable, Found, Key, Memory, Open, OptionalExt, Record, RecordKind, Result,
    StorageStats, UsageStore, lease::Lease,
};
use serde_json::{Map, Value, json};

pub use transactions::BrokenTransaction;

/// The fault of a [`Broken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No fault.
    Sound,
    // Close and statistics
    /// Serves calls after `close`.
    ServesAfterClose,
    /// Counts a credential too many.
    MiscountsStats,
    /// Shows keys in the statistics.
    StatsShowKeys,
    // Keys
    /// Upper and lower case are one key.
    FoldsCase,
    /// `a.json` is `a`.
    DropsJsonSuffix,
    /// Joins a record's key and a field with a colon, which either may contain.
    RunsKeysTogether,
    /// Drops spaces around a key.
    TrimsKeys,
    // Values
    /// -0.0 becomes 0.0.
    ZeroLosesItsSign,
    /// Large integers become floats.
    IntegersBecomeFloats,
    /// Text that is JSON becomes its value.
    TextBecomesNumber,
    /// Text ends at its first NUL.
    TextIsCutAtNul,
    /// Drops fields that are null.
    DropsNulls,
    /// Adds a field of its own.
    AddsField,
    /// A write keeps the fields that it does not name.
    Merges,
    /// A second write changes nothing.
    KeepsFirst,
    // Missing
    /// A delete of a missing record is `Ok`.
    DeleteOfMissingIsOk,
    /// A missing usage record is an empty one.
    MissingUsageIsEmpty,
    /// A reset of a missing usage record is `Ok`.
    ResetOfMissingIsOk,
    /// A missing record is another error than `NotFound`.
    MissingIsAnotherError,
    /// The error of a missing record has no key.
    MissingHasNoKey,
    /// The errors of a batch's items have no key.
    FailuresHaveNoKey,
    /// A stored null is a missing record.
    NullIsMissing,
    // Deletes and batches
    /// A delete deletes nothing.
    SwallowsDelete,
    /// A batch delete deletes nothing.
    SwallowsBatchDelete,
    /// A batch ends at its first failure.
    BatchStopsAtFailure,
    /// Of two values for one key in a batch the first is stored.
    BatchKeepsFirst,
    /// The index of a failure counts within its chunk.
    FailureIndexInChunk,
    /// An empty batch is an error.
    EmptyBatchFails,
    /// A list is not in the order of its keys.
    ListIsUnsorted,
    /// A write can be seen in part.
    TearsWrites,
    /// A batch loses each 333rd write.
    LosesUnderLoad,
    // Counters
    /// Loses each tenth increment.
    LosesTenthIncrement,
    /// Reads, adds and writes, without a lock.
    RacyIncrement,
    /// Counts in floats.
    CountsInFloats,
    /// A counter wraps.
    OverflowWraps,
    /// A counter stays at its limit, and the call is `Ok`.
    OverflowIsOk,
    /// An overflow ends the batch of increments.
    OverflowStopsMany,
    /// A batch of increments is applied in another order.
    ManyReordered,
    /// A reset leaves one field.
    ResetLeavesAField,
    /// An increment by 0 creates no counter.
    ZeroMakesNoCounter,
    /// Reads, compares, and counts.
    WithinIsRacy,
    /// Refuses a total that equals the limit.
    WithinIsExclusive,
    /// Compares in floats.
    WithinInFloats,
    /// A total over `i64::MAX` is an error instead of a refusal.
    WithinOverflows,
    /// Counts what it refuses.
    RefusedIsCounted,
    /// Makes a counter that it refuses to count.
    RefusedMakesCounter,
    /// A refusal has the total that was refused.
    RefusedHasNewTotal,
    /// Each item of a batch has the total after the whole batch.
    TotalsAreFinal,
    /// A missing counter is an error.
    MissingCounterFails,
    /// Resets what contains the prefix.
    ResetsWhatContains,
    /// The number of records reset is that of their counters.
    ResetCountsCounters,
    /// Resets a thousand records at most.
    ResetEndsEarly,
    /// A write that was applied ends with a timeout that says it was not.
    TimeoutLies,
    // Streams
    /// A stream is not in the order of the keys.
    StreamIsUnsorted,
    /// The prefix is compared without case.
    StreamIgnoresCase,
    /// A stream begins with the key after which it should begin.
    StreamIncludesAfter,
    /// The limit counts records without the prefix.
    StreamLimitsFirst,
    /// A stream ends after 250 records.
    StreamEndsEarly,
    /// The limit counts records that were deleted meanwhile.
    StreamCountsDeleted,
    // Export and import
    /// An import drops usage records.
    ImportDropsUsage,
    /// Says that it can import no kind of record.
    ImportSaysNo,
    /// An import adds to a counter instead of setting it.
    ImportAddsUsage,
    /// An import of one counter removes the record's others.
    ImportReplacesRecord,
    /// An export reads the store only when it is polled.
    ExportIsLive,
    /// An export lacks its last record.
    ExportSkipsLast,
    /// An export is not in order.
    ExportIsUnsorted,
    // Cache
    /// A TTL is at least a second.
    TtlInSeconds,
    /// A TTL of zero does not expire.
    TtlZeroForEver,
    /// A second write keeps the TTL of the first.
    TtlOfTheFirst,
    /// An entry always has a minute to live.
    EntryNeverAges,
    /// Cuts a value that is too large instead of refusing it.
    NoSizeLimit,
    /// `set_cache_if_absent` replaces a value.
    IfAbsentReplaces,
    /// Reads, and then stores.
    IfAbsentIsRacy,
    /// A batch of cache values has a minute to live.
    ManyLiveAMinute,
    /// A cache value that is too large ends the batch.
    TooLargeStopsMany,
    /// A cached value ends at its first NUL.
    CacheCutsAtNul,
    // Watches
    /// The first event is not told.
    WatchBeginsSilently,
    /// No change of a credential is told.
    WatchLosesCredentials,
    /// No delete is told.
    WatchLosesDeletes,
    /// Of changes that come together the first is told.
    WatchMergesBatches,
    /// The keys in lower case.
    WatchFoldsCase,
    /// Changes of each kind are told to a watch of one.
    WatchTellsAllKinds,
    /// Only the newest watch is told.
    WatchTellsOne,
    /// A watch from a cursor begins now.
    WatchForgetsChanges,
    /// A watch from any cursor goes on.
    WatchTrustsCursors,
    /// A slow reader is not told that it missed something.
    WatchHidesGaps,
    /// The changes of one record get lost.
    WatchLosesUnderLoad,
    /// Without changes nothing is told.
    WatchIsNeverIdle,
    /// A watch goes on without events after `close`.
    WatchSurvivesClose,
    /// A watch ends at `close` without an error.
    WatchEndsSilently,
    /// `next_change` never ends.
    WakesNever,
    // Config batches
    /// A plan's deletes are applied after its writes.
    PlanDeletesLast,
    /// A plan's -0.0 becomes 0.0.
    PlanLosesItsSign,
    /// Another plan under a used key is a replay.
    PlanReplaysAnother,
    /// A replay is applied again.
    PlanReplaysItself,
    /// Ignores what a plan expects.
    PlanExpectsNothing,
    /// A refused plan is applied in part.
    PlanRefusedInPart,
    /// A plan's key is kept for the longest time.
    PlanNeverExpires,
    /// A plan that was rolled back can be applied again.
    PlanComesBack,
    /// Concurrent calls with one plan can all report that they applied it.
    PlanIsRacy,
    /// Each rollback is forced.
    RollbackForces,
    /// A second rollback is reported as the first.
    RollbackForgets,
    /// A refused rollback names one of the changed keys.
    RollbackNamesOne,
    /// The audit begins with the oldest entry.
    AuditIsOldestFirst,
    /// The audit lacks failed attempts.
    AuditOmitsFailures,
    /// The audit's filter ignores stages.
    AuditIgnoresStages,
    // Transactions
    /// A conflict is overwritten.
    LostUpdate,
    /// A dropped transaction is committed.
    DropCommits,
    /// A rollback commits.
    RollbackCommits,
    /// A transaction does not read its own writes.
    NoOwnWrites,
    /// Writes are seen before the commit.
    DirtyReads,
    /// A transaction reads what others have written since it began.
    NoSnapshot,
    /// A conflict is not retryable.
    ConflictIsFinal,
    // Conditions
    /// `Absent` replaces a record.
    AbsentReplaces,
    /// `Unchanged` replaces any revision.
    UnchangedReplacesAny,
    /// `Unchanged` creates a record that was deleted.
    UnchangedCreates,
    /// A value that is stored already is stored again, whatever its revision was.
    EqualIsStored,
    /// Compares, and then writes.
    ConditionIsRacy,
    /// The conflict of a condition is retryable.
    ConditionIsRetryable,
    /// The conflict of a condition has no key.
    ConditionHasNoKey,
    /// `delete_if` deletes any revision.
    DeletesAnyRevision,
    /// `delete_if` of a missing record is `Ok`.
    DeleteIfMissingIsOk,
    /// The revision is that of the key.
    RevisionIsOfTheKey,
    /// `set_if` returns the revision of the record before.
    ReturnsOldRevision,
    /// Both kinds are stored under one key.
    KindsAreOne,
    // Leases
    /// Reads, and then claims.
    ClaimIsRacy,
    /// A lease is anybody's.
    LeaseHasManyHolders,
    /// The same holder again is another holder.
    ClaimForgetsHolder,
    /// The same holder again gets a new number.
    ClaimRenumbers,
    /// A second claim does not make the lease end later.
    ClaimKeepsEnd,
    /// A name's number is always 1.
    NumberIsOne,
    /// A renewal has a new number.
    RenewRenumbers,
    /// The time that is left is the whole time.
    LeftIsNothing,
    /// A lease does not end.
    LeaseNeverEnds,
    /// A lease has half of its time.
    LeaseEndsEarly,
    /// A renewal never makes a lease end earlier.
    RenewOnlyExtends,
    /// A renewal of a lease that has ended claims it again.
    RenewClaims,
    /// The conflict of a renewal is retryable.
    LostIsRetryable,
    /// A renewal compares the holder and not the number.
    RenewIgnoresNumber,
    /// A release compares nothing.
    ReleaseIsBlind,
    /// A release compares the holder and not the number.
    ReleaseIgnoresNumber,
    /// A release of a released lease is an error.
    SecondReleaseFails,
    /// A second release begins a rest.
    SecondReleaseRests,
    /// There is no rest.
    NeverRests,
    /// The last holder can claim a lease that rests.
    RestIsForOthers,
    /// The list lacks what rests.
    ListOmitsRests,
    /// The list has the last holder of what rests.
    ListNamesRests,
    /// The list is not in the order of the names.
    LeasesAreUnsorted,
    /// A time of zero is a millisecond.
    ZeroIsALease,
    /// A time that is too long is the longest.
    TooLongIsALease,
    // Time
    /// `health` does not end.
    Hangs,
}

use Fault::*;

/// [`Memory`] with one fault.
#[derive(Clone)]
pub struct Broken {
    memory: Memory,
    fault: Fault,
    calls: Arc<AtomicU64>,
    hasty: bool,
    stays_open: bool,
    /// The last lease of each name, as its holder got it.
    leases: Arc<Mutex<BTreeMap<Key, Lease>>>,
}

impl Broken {
    /// An empty store with this fault.
    pub async fn new(fault: Fault) -> Self {
        let memory = Memory::open("memory:".try_into().expect("a URL")).await.expect("memory opens");
        let stays_open = fault == ServesAfterClose;
        Self { memory, fault, calls: Arc::default(), hasty: false, stays_open, leases: Arc::default() }
    }

    /// A backend that `close` does not close, so that it can be opened again.
    pub async fn unclosed(fault: Fault) -> Self {
        Self { stays_open: true, ..Self::new(fault).await }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// True at every `n`th call.
    fn every(&self, n: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % n == n - 1
    }

    fn key(&self, key: &Key) -> Key {
        let name = key.as_str();
        let name = match self.fault {
            FoldsCase => name.to_lowercase(),
            DropsJsonSuffix => name.strip_suffix(".json").unwrap_or(name).to_owned(),
            TrimsKeys if !name.trim().is_empty() => name.trim().to_owned(),
            _ => return key.clone(),
        };
        Key::new(&name).unwrap_or_else(|_| key.clone())
    }

    fn counter(&self, record: &Key, field: &Key) -> (Key, Key) {
        let joined = format!("{}:{}", record.as_str(), field.as_str());
        match joined.rsplit_once(':') {
            Some((left, right)) if self.has(RunsKeysTogether) => {
                (Key::new(left).unwrap_or(record.clone()), Key::new(right).unwrap_or(field.clone()))
            }
            _ => (self.key(record), self.key(field)),
        }
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::Number(number) => match (self.fault, number.as_f64()) {
                (ZeroLosesItsSign | PlanLosesItsSign, Some(0.0)) if number.is_f64() => json!(0.0),
                (IntegersBecomeFloats, Some(float)) if float.abs() > 9e15 => json!(float),
                _ => value.clone(),
            },
            Value::String(text) => match self.fault {
                TextBecomesNumber => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
                TextIsCutAtNul => json!(text.split('\0').next()),
                _ => value.clone(),
            },
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => Value::Object(self.fields(fields)),
            Value::Null | Value::Bool(_) => value.clone(),
        }
    }

    fn fields(&self, fields: &Map<String, Value>) -> Map<String, Value> {
        let kept = fields.iter().filter(|(_, value)| !(self.has(DropsNulls) && value.is_null()));
        let mut fields: Map<String, Value> =
            kept.map(|(name, value)| (name.clone(), self.value(value))).collect();
        if self.has(AddsField) {
            fields.insert("updated_at".to_owned(), json!(1));
        }
        fields
    }

    fn missing(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if error.kind() == ErrorKind::NotFound && self.has(DeleteOfMissingIsOk) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound && self.has(MissingIsAnotherError) => {
                Err(Error::new(ErrorKind::Unavailable, "no such file"))
            }
            Err(error) if self.has(MissingHasNoKey) => Err(Error::new(error.kind(), "no such file")),
            other => other,
        }
    }
}

fn overflow(key: &Key) -> Error {
    Error::new(ErrorKind::Overflow, "too much").with_key(key)
}

impl Backend for Broken {
    fn label(&self) -> &'static str {
        "broken"
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.hasty = deadline < Duration::from_millis(10);
        self.memory.set_deadline(deadline);
    }

    async fn health(&self) -> Result<()> {
        if self.has(Hangs) {
            std::future::pending::<()>().await;
        }
        self.memory.health().await
    }

    async fn stats(&self) -> Result<StorageStats> {
        let inner = self.memory.stats().await?;
        let mut stats = StorageStats::new(self.label());
        stats.credential_count = inner.credential_count + u64::from(self.has(MiscountsStats));
        stats.config_count = inner.config_count;
        stats.usage_record_count = inner.usage_record_count;
        if self.has(StatsShowKeys) {
            let keys = self.memory.list_configs().await?;
            stats.details.insert("keys".to_owned(), keys.keys().map(|key| json!(key.as_str())).collect());
        }
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        if self.stays_open { Ok(()) } else { self.memory.close().await }
    }
}

impl CredentialStore for Broken {
    async fn get_credential(&self, id: &Key) -> Result<Credential> {
        self.memory.get_credential(&self.key(id)).await
    }

    async fn set_credential(&self, id: &Key, credential: &Credential) -> Result<()> {
        let id = &self.key(id);
        let mut fields = self.fields(credential.fields());
        match self.memory.get_credential(id).await.optional()? {
            Some(_) if self.has(KeepsFirst) => return Ok(()),
            Some(stored) if self.has(Merges) => {
                let mut merged = stored.fields().clone();
                merged.extend(fields);
                fields = merged;
            }
            _ => {}
        }
        if self.has(TearsWrites) {
            let half =
                fields.iter().take(fields.len() / 2).map(|(name, value)| (name.clone(), value.clone()));
            self.memory.set_credential(id, &Credential::new(half.collect())?).await?;
            tokio::task::yield_now().await;
        }
        self.memory.set_credential(id, &Credential::new(fields)?).await
    }

    async fn delete_credential(&self, id: &Key) -> Result<()> {
        let id = &self.key(id);
        if self.has(SwallowsDelete) {
            return self.memory.get_credential(id).await.map(drop);
        }
        self.missing(self.memory.delete_credential(id).await)
    }

    async fn list_credentials(&self) -> Result<Vec<Key>> {
        let mut ids = self.memory.list_credentials().await?;
        if self.has(ListIsUnsorted) {
            ids.sort_by_key(|id| (id.as_str().len(), id.clone()));
        }
        Ok(ids)
    }

    async fn get_credentials(&self, ids: &[Key]) -> Result<Found<Credential>> {
        let ids: Vec<Key> = ids.iter().map(|id| self.key(id)).collect();
        let mut found = self.memory.get_credentials(&ids).await?;
        if self.has(FailureIndexInChunk) {
            found.failures.iter_mut().for_each(|failure| failure.index %= 1_000);
        }
        if self.has(FailuresHaveNoKey) {
            let error = Error::new(ErrorKind::NotFound, "no such file");
            found.failures.iter_mut().for_each(|failure| failure.error = error.clone());
        }
        Ok(found)
    }

    async fn set_credentials(&self, credentials: &[(Key, Credential)]) -> Result<BatchReport> {
        if self.has(EmptyBatchFails) && credentials.is_empty() {
            return Err(Error::new(ErrorKind::InvalidValue, "syntax error at or near \")\""));
        }
        let mut report = BatchReport::default();
        let mut seen = std::collections::BTreeSet::new();
        for (index, (id, credential)) in credentials.iter().enumerate() {
            let skip = self.has(BatchKeepsFirst) && !seen.insert(id);
            let lost = self.has(LosesUnderLoad) && self.every(333);
            let result = if skip || lost { Ok(()) } else { self.set_credential(id, credential).await };
            report.record(index, id, result);
        }
        Ok(report)
    }

    async fn delete_credentials(&self, ids: &[Key]) -> Result<BatchReport> {
        let ids: Vec<Key> = ids.iter().map(|id| self.key(id)).collect();
        if self.has(SwallowsBatchDelete) {
            let found = self.memory.get_credentials(&ids).await?;
            let mut report = BatchReport::default();
            report.succeeded = ids.len() - found.failures.len();
            report.failures = found.failures;
            return Ok(report);
        }
        if self.has(BatchStopsAtFailure) {
            let mut report = BatchReport::default();
            for (index, id) in ids.iter().enumerate() {
                let result = self.memory.delete_credential(id).await;
                let failed = result.is_err();
                report.record(index, id, result);
                if failed {
                    break;
                }
            }
            return Ok(report);
        }
        self.memory.delete_credentials(&ids).await
    }
}

impl ConfigStore for Broken {
    async fn get_config(&self, key: &Key) -> Result<ConfigValue> {
        let value = self.memory.get_config(&self.key(key)).await?;
        if value.is_null() && self.has(NullIsMissing) {
            return Err(Error::new(ErrorKind::NotFound, "null"));
        }
        Ok(value)
    }

    async fn set_config(&self, key: &Key, value: &ConfigValue) -> Result<()> {
        self.memory.set_config(&self.key(key), &ConfigValue::new(self.value(value))?).await
    }

    async fn delete_config(&self, key: &Key) -> Result<()> {
        self.missing(self.memory.delete_config(&self.key(key)).await)
    }

    async fn list_configs(&self) -> Result<BTreeMap<Key, ConfigValue>> {
        self.memory.list_configs().await
    }
}

impl CacheStore for Broken {
    async fn get_cache(&self, key: &Key) -> Result<Vec<u8>> {
        self.memory.get_cache(key).await
    }

    async fn get_cache_entry(&self, key: &Key) -> Result<CacheEntry> {
        let mut entry = self.memory.get_cache_entry(key).await?;
        if self.fault == EntryNeverAges {
            entry.expires_in = Some(Duration::from_secs(60));
        }
        Ok(entry)
    }

    async fn set_cache(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<()> {
        let ttl = match self.fault {
            TtlInSeconds => Duration::from_secs(ttl.as_secs().max(1)),
            TtlZeroForEver if ttl.is_zero() => Duration::from_secs(1_000),
            TtlOfTheFirst if self.memory.get_cache(key).await.is_ok() => Duration::from_millis(20),
            _ => ttl,
        };
        let value = match self.fault {
            NoSizeLimit => &value[..value.len().min(gateway_storage::MAX_VALUE_BYTES)],
            CacheCutsAtNul => value.split(|&byte| byte == 0).next().unwrap_or_default(),
            _ => value,
        };
        self.memory.set_cache(key, value, ttl).await
    }

    async fn set_cache_if_absent(&self, key: &Key, value: &[u8], ttl: Duration) -> Result<bool> {
        match self.fault {
            IfAbsentReplaces => self.memory.set_cache(key, value, ttl).await.map(|()| true),
            IfAbsentIsRacy if self.memory.get_cache(key).await.is_err() => {
                tokio::task::yield_now().await;
                self.memory.set_cache(key, value, ttl).await.map(|()| true)
            }
            _ => self.memory.set_cache_if_absent(key, value, ttl).await,
        }
    }

    async fn set_cache_many(&self, values: &[(Key, Vec<u8>)], ttl: Duration) -> Result<BatchReport> {
        let mut report = BatchReport::default();
        let ttl = if self.has(ManyLiveAMinute) && !ttl.is_zero() { Duration::from_secs(60) } else { ttl };
        for (index, (key, value)) in values.iter().enumerate() {
            let stored = self.memory.set_cache(key, value, ttl).await;
            let ends = stored.is_err() && self.has(TooLargeStopsMany);
            report.record(index, key, stored);
            if ends {
                break;
            }
        }
        Ok(report)
    }

    async fn delete_cache(&self, key: &Key) -> Result<()> {
        self.memory.delete_cache(key).await
    }
}

impl Exportable for Broken {
    fn exports_snapshot(&self) -> bool {
        self.memory.exports_snapshot()
    }

    fn imports(&self, _: RecordKind) -> bool {
        !self.has(ImportSaysNo)
    }

    fn export(&self) -> impl Stream<Item = Result<Record>> + Send {
        let broken = self.clone();
        // Only `ExportIsLive` reads the store when the stream is first polled, instead of now.
        let snapshot = (!self.has(ExportIsLive)).then(|| self.memory.export().boxed());
        futures_util::stream::once(async move {
            let mut records: Vec<Result<Record>> = match snapshot {
                Some(records) => records.collect().await,
                None => broken.memory.export().collect().await,
            };
            match broken.fault {
                ExportSkipsLast => drop(records.pop()),
                ExportIsUnsorted => records.reverse(),
                _ => {}
            }
            futures_util::stream::iter(records)
        })
        .flatten()
    }

    async fn import(&self, records: &[Record]) -> Result<BatchReport> {
        let mut report = BatchReport::default();
        for (index, record) in records.iter().enumerate() {
            let result = match record {
                Record::Usage { .. } if self.has(ImportDropsUsage) => Ok(()),
                Record::Usage { key, field, count } if self.has(ImportAddsUsage) => {
                    self.memory.increment_usage(key, field, *count).await.or(Ok(0)).map(drop)
                }
                Record::Usage { key, .. } if self.has(ImportReplacesRecord) => {
                    drop(self.memory.reset_usage(key).await);
                    self.memory.import(std::slice::from_ref(record)).await.map(drop)
                }
                _ => self.memory.import(std::slice::from_ref(record)).await.map(drop),
            };
            report.record(index, record.key(), result);
        }
        // An import of nothing must also return `Closed` after close.
        self.memory.health().await.map(|()| report)
    }
}
