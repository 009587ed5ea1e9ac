//! Each fault makes the kit panic at the bullet that it violates. Most of these faults were seen in
//! gcli2api-go.

use gateway_storage::{Storage, conformance};
use testkit::broken::{Broken, Fault, Fault::*};

async fn storage(fault: Fault) -> Storage<Broken> {
    Storage::new(Broken::new(fault).await)
}

/// One test per part of the kit: a sound backend passes, and each fault is found at the named bullet.
macro_rules! catches {
    ($($name:ident: $part:path { $($fault:ident: $bullet:literal,)* })*) => {$(
        // With paused time, because a hang takes two minutes. `cache` has its own test, in real time.
        #[tokio::test(start_paused = true)]
        async fn $name() {
            $part(&storage(Sound).await).await;
            let mut missed = Vec::new();
            $(missed.extend(miss($fault, $bullet, tokio::spawn(async {
                $part(&storage($fault).await).await;
            })).await);)*
            assert!(missed.is_empty(), "{}", missed.join("\n"));
        }
    )*};
}

/// A message if the fault is not found, or is found at another bullet.
async fn miss(fault: Fault, bullet: &str, run: tokio::task::JoinHandle<()>) -> Option<String> {
    let Err(end) = run.await else { return Some(format!("{fault:?} is not found")) };
    let panic = end.into_panic();
    let message = panic.downcast_ref::<String>().expect("a panic with a message");
    let named = message.starts_with("the contract is violated: ") && message.contains(bullet);
    (!named).then(|| format!("{fault:?} is found as: {message}"))
}

catches! {
    backend: conformance::backend {
        ServesAfterClose: "close: every handle is closed",
        Hangs: "not finished after 120s",
    }
    credentials: conformance::credentials {
        MiscountsStats: "counts what is stored",
        FoldsCase: "get_credential, delete_credential: NotFound",
        DropsJsonSuffix: "get_credential, delete_credential: NotFound",
        TrimsKeys: "a key is never interpreted",
        ZeroLosesItsSign: "equal to what was stored",
        IntegersBecomeFloats: "equal to what was stored",
        TextBecomesNumber: "equal to what was stored",
        TextIsCutAtNul: "equal to what was stored",
        DropsNulls: "equal to what was stored",
        AddsField: "equal to what was stored",
        Merges: "in place of any other",
        KeepsFirst: "in place of any other",
        DeleteOfMissingIsOk: "NotFound if there is none",
        MissingIsAnotherError: "NotFound if there is none",
        MissingHasNoKey: "the key of the error",
        FailuresHaveNoKey: "the key of a failure's error",
        SwallowsDelete: "NotFound if there is none",
        SwallowsBatchDelete: "NotFound is a failure and stops nothing",
        BatchStopsAtFailure: "delete_credentials: NotFound is a failure and stops nothing",
        BatchKeepsFirst: "the last stays",
        FailureIndexInChunk: "a batch may be large",
        EmptyBatchFails: "a batch of nothing",
        ListIsUnsorted: "not sorted",
        TearsWrites: "whole",
        LosesUnderLoad: "a batch may be large",
    }
    configs: conformance::configs {
        StatsShowKeys: "no keys",
        FoldsCase: "NotFound",
        TextBecomesNumber: "equal to what was stored",
        ZeroLosesItsSign: "equal to what was stored",
        NullIsMissing: "get_config: equal to what was stored",
        DeleteOfMissingIsOk: "NotFound if there is none",
    }
    conditional: conformance::conditional {
        ConditionHasNoKey: "what is missing has no revision",
        ConditionIsRetryable: "what is missing has no revision",
        UnchangedCreates: "what is missing has no revision",
        DeleteIfMissingIsOk: "what is missing has no revision",
        AbsentReplaces: "set_if Absent creates a record once",
        UnchangedReplacesAny: "set_if Unchanged replaces what was read, and nothing else",
        ReturnsOldRevision: "set_if Unchanged replaces what was read, and nothing else",
        RevisionIsOfTheKey: "set_if Unchanged replaces what was read, and nothing else",
        DeletesAnyRevision: "every write changes the revision",
        EqualIsStored: "set_if is applied once, even if the record is then equal",
        ConditionIsRacy: "of concurrent updates none is lost",
        KindsAreOne: "records of the two kinds are different records",
    }
    leases: conformance::leases {
        LeaseHasManyHolders: "a lease has one holder",
        LeftIsNothing: "others get the time that is left",
        LeaseEndsEarly: "others get the time that is left",
        RenewRenumbers: "a lease has one holder",
        ClaimForgetsHolder: "the same holder again has the lease",
        ClaimRenumbers: "with the same number",
        ClaimKeepsEnd: "the same holder again has the lease",
        NumberIsOne: "the number is greater than all earlier ones",
        RenewOnlyExtends: "renew_lease makes the lease end later or earlier",
        RenewClaims: "renew_lease of a released lease is Conflict",
        LostIsRetryable: "renew_lease of a released lease is Conflict",
        RenewIgnoresNumber: "renew_lease of a released lease is Conflict",
        ReleaseIsBlind: "release_lease of another's lease changes nothing",
        ReleaseIgnoresNumber: "release_lease of another's lease changes nothing",
        SecondReleaseFails: "release_lease of another's lease changes nothing",
        SecondReleaseRests: "release_lease again changes nothing",
        NeverRests: "a lease that rests has no holder",
        RestIsForOthers: "a lease that rests has no holder",
        ListOmitsRests: "a lease that rests has no holder",
        ListNamesRests: "list_leases: what is held or rests, by name",
        LeasesAreUnsorted: "list_leases: what is held or rests, by name",
        ZeroIsALease: "is InvalidValue",
        TooLongIsALease: "is InvalidValue",
        ClaimIsRacy: "of concurrent claims one is Yours",
        LeaseNeverEnds: "a lease ends by itself",
    }
    watch: conformance::watch {
        WatchBeginsSilently: "a watch begins with Resync",
        WatchLosesCredentials: "each change is told, with its key",
        WatchLosesDeletes: "each change is told, with its key",
        WatchMergesBatches: "each change is told, with its key",
        WatchFoldsCase: "each change is told, with its key",
        WatchTellsAllKinds: "changes of one kind, if one is asked for",
        WatchTellsOne: "each watch is told, also if another one ends",
        WatchForgetsChanges: "a watch from a cursor tells what has changed since",
        WatchTrustsCursors: "a watch from a cursor of another store begins with Resync",
        WatchHidesGaps: "a reader that is too slow gets a Resync in place of what it missed",
        WatchLosesUnderLoad: "of concurrent changes none is missed",
        WatchIsNeverIdle: "Idle comes if nothing changes",
    }
    watch_conditional: conformance::watch_conditional {
        WatchLosesCredentials: "a conditional write is told",
        WatchLosesDeletes: "a conditional write is told",
        WakesNever: "next_change ends at a change",
    }
    watch_plans: conformance::watch_plans {
        WatchLosesDeletes: "a plan and its rollback are told",
    }
    watch_transactions: conformance::watch_transactions {
        WatchLosesDeletes: "a transaction is told",
    }
    watch_import: conformance::watch_import {
        WatchLosesCredentials: "an import is told",
    }
    watch_at_close: conformance::watch_at_close {
        WatchSurvivesClose: "close: a watch ends with Closed",
        WatchEndsSilently: "close: a watch ends with Closed",
    }
    plans: conformance::plans {
        PlanDeletesLast: "all mutations, in their order",
        PlanLosesItsSign: "equal to what was stored",
        PlanReplaysAnother: "another plan under the same key is Conflict",
        PlanReplaysItself: "Replayed, and changes nothing",
        PlanExpectsNothing: "what a mutation expects holds",
        PlanRefusedInPart: "what a mutation expects holds",
        PlanNeverExpires: "after the time to live the key is free",
        PlanComesBack: "not applied again",
        PlanIsRacy: "one is Applied and the others Replayed",
        RollbackForces: "refused, with the keys",
        RollbackForgets: "puts back what the plan replaced, once",
        RollbackNamesOne: "refused, with the keys",
        AuditIsOldestFirst: "newest first",
        AuditOmitsFailures: "one entry for each attempt",
        AuditIgnoresStages: "the filter",
    }
    usage: conformance::usage {
        RunsKeysTogether: "never interpreted",
        FoldsCase: "NotFound",
        MissingUsageIsEmpty: "NotFound",
        ResetOfMissingIsOk: "NotFound",
        MissingHasNoKey: "the key of the error",
        LosesTenthIncrement: "to the last digit",
        RacyIncrement: "exact concurrently",
        CountsInFloats: "to the last digit",
        OverflowWraps: "Overflow leaves the counter",
        OverflowIsOk: "Overflow leaves the counter",
        OverflowStopsMany: "an overflow fails, and the next is applied",
        ManyReordered: "in order, increments of one counter add up",
        ResetLeavesAField: "removes one record with all",
        ZeroMakesNoCounter: "gives the new total",
        TimeoutLies: "reports its outcome",
        WithinIsRacy: "never over the limit concurrently",
        WithinIsExclusive: "counts up to the limit",
        WithinInFloats: "any i64",
        WithinOverflows: "any i64",
        RefusedIsCounted: "counts up to the limit",
        RefusedMakesCounter: "makes nothing",
        RefusedHasNewTotal: "counts up to the limit",
        TotalsAreFinal: "in order, increments of one counter add up",
        MissingCounterFails: "0 if it is missing",
        ResetsWhatContains: "the records with the prefix",
        ResetCountsCounters: "and their number",
        ResetEndsEarly: "reset_usage_prefix: of many",
        StreamIsUnsorted: "not sorted",
        StreamIgnoresCase: "those with a prefix",
        StreamIncludesAfter: "those after a key",
        StreamLimitsFirst: "up to a limit",
        StreamEndsEarly: "of nothing, and of many",
        StreamCountsDeleted: "there all the time is returned once",
    }
    transactions: conformance::transactions {
        LostUpdate: "one gets Conflict",
        DropCommits: "dropping a transaction rolls back",
        RollbackCommits: "rollback: forgets",
        NoOwnWrites: "sees its own writes",
        DirtyReads: "commit",
        NoSnapshot: "as it was at one moment",
        ConflictIsFinal: "one gets Conflict",
    }
    export: conformance::export {
        ExportSkipsLast: "export: every credential",
        ExportIsUnsorted: "sorted by key",
        ImportSaysNo: "a kind for which it is false is not stored",
    }
    export_usage: conformance::export_usage {
        ImportDropsUsage: "counter",
        ImportAddsUsage: "counter",
        ImportReplacesRecord: "counter",
        ExportIsUnsorted: "sorted by key and field",
    }
    export_snapshot: conformance::export_snapshot {
        ExportIsLive: "as it was when the stream was made",
    }
}

#[tokio::test]
async fn cache() {
    conformance::cache(&storage(Sound).await).await;
    let faults = [
        (TtlInSeconds, "InvalidValue"),
        (TtlZeroForEver, "InvalidValue"),
        (TtlOfTheFirst, "ttl"),
        (EntryNeverAges, "at most its ttl"),
        (NoSizeLimit, "TooLarge"),
        (CacheCutsAtNul, "the bytes that were stored"),
        (IfAbsentReplaces, "stores what is missing, and nothing else"),
        (IfAbsentIsRacy, "of concurrent calls one stores"),
        (ManyLiveAMinute, "each value for its ttl"),
        (TooLargeStopsMany, "stops no other"),
    ];
    let mut missed = Vec::new();
    for (fault, bullet) in faults {
        let run = tokio::spawn(async move { conformance::cache(&storage(fault).await).await });
        missed.extend(miss(fault, bullet, run).await);
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A store that is empty each time it is opened.
#[tokio::test]
async fn restart() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let opened = AtomicU32::new(0);
    let open = || async {
        let storage = storage(ServesAfterClose).await;
        opened.fetch_add(1, Ordering::Relaxed);
        storage
    };
    let ended = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(
        conformance::restart::usage(open),
    ))
    .await;
    assert!(ended.is_err() && opened.load(Ordering::Relaxed) == 2, "lost records are not found");
}
