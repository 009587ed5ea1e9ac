//! An interrupted copy resumes from its checkpoint.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, StreamExt, stream};
use gateway_storage::{
    Error, ErrorKind, Memory, Record, RecordKind, Result, Storage,
    layer::Count,
    migrate::{Checkpoint, CopyEvent, CopyOptions, CopyReport, Filter, OnConflict, copy},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::records::{configs, digest, memory, of, usage};

struct Setup {
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("checkpoint")
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::new(self.path(), "here", "there")
    }

    fn options(&self, checkpoint: Checkpoint) -> CopyOptions {
        CopyOptions::default().with_checkpoint(checkpoint).with_batch(10)
    }

    async fn copy(
        &self,
        records: impl Stream<Item = Result<Record>> + Send,
        to: &Storage<Memory>,
        checkpoint: Checkpoint,
    ) -> Result<CopyReport> {
        copy(records, to, &self.options(checkpoint), |_| ()).await
    }
}

/// The first records, and then an error.
fn broken(records: Vec<Record>, after: usize) -> impl Stream<Item = Result<Record>> + Send {
    let error = stream::iter([Err(Error::new(ErrorKind::Unavailable, "the source is lost"))]);
    of(records.into_iter().take(after).collect()).chain(error)
}

fn records() -> Vec<Record> {
    let mut records = configs(100);
    records.extend((0..100).map(|n| usage(&format!("u{}", n / 10), &format!("f{}", n % 10), n)));
    records
}

#[tokio::test]
async fn resumes_from_the_saved_position() {
    for after in [0, 1, 9, 10, 11, 100, 105, 199, 200] {
        let (setup, to) = (Setup::new(), memory(Vec::new()).await);
        let report = setup.copy(broken(records(), after), &to, setup.checkpoint()).await.unwrap();
        assert_eq!(report.stopped.as_ref().unwrap().to_string(), "the source is lost");
        assert_eq!(report.tallies.total().written, after as u64, "all records that were read are written");
        let mode = fs::metadata(setup.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let count = Count::default();
        let mut resumed = None;
        let options = setup.options(setup.checkpoint().resuming());
        let counted = to.clone().layer(count.clone());
        let report = copy(of(records()), &counted, &options, |event| {
            if let CopyEvent::Resumed(tallies) = event {
                resumed = Some(tallies.total().read);
            }
        });
        let report = report.await.unwrap().complete().unwrap();
        assert!(report.resumed);
        let known = after as u64;
        assert_eq!(resumed, Some(known));
        let chunks = (200 - known).div_ceil(10);
        assert_eq!(
            count.of("import"),
            chunks,
            "after {after}: records before the checkpoint are not written again"
        );
        assert_eq!(report.tallies.total().written, 200);
        assert_eq!(report.tallies.total().read, 200);
        assert_eq!(digest(&to).await, digest(&memory(records()).await).await);
        assert!(!setup.path().exists(), "the copy is complete");
    }
}

#[tokio::test]
async fn a_resumed_copy_meets_the_conflict_again() {
    let (setup, to) = (Setup::new(), memory(vec![super::records::config("k00042", json!("other"))]).await);
    let report = setup.copy(of(records()), &to, setup.checkpoint()).await.unwrap();
    assert_eq!(report.stopped.unwrap().kind(), ErrorKind::Conflict);
    let report = setup.copy(of(records()), &to, setup.checkpoint().resuming()).await.unwrap();
    assert_eq!(report.stopped.unwrap().kind(), ErrorKind::Conflict, "the conflict remains");
    let options = setup.options(setup.checkpoint().resuming()).with_on_conflict(OnConflict::Overwrite);
    let _ = copy(of(records()), &to, &options, |_| ()).await.unwrap().complete().unwrap();
    assert_eq!(digest(&to).await, digest(&memory(records()).await).await);
}

/// Under another policy the records up to the checkpoint would have been treated differently.
#[tokio::test]
async fn only_a_copy_under_fail_resumes_with_another_policy() {
    use OnConflict::{Fail, Overwrite, Skip};
    for (first, second, resumes) in [
        (Fail, Skip, true),
        (Fail, Overwrite, true),
        (Skip, Overwrite, false),
        (Skip, Fail, false),
        (Overwrite, Skip, false),
        (Overwrite, Overwrite, true),
    ] {
        let (setup, to) = (Setup::new(), memory(Vec::new()).await);
        let with = |checkpoint, policy| setup.options(checkpoint).with_on_conflict(policy);
        let _ = copy(broken(records(), 50), &to, &with(setup.checkpoint(), first), |_| ()).await.unwrap();
        let options = with(setup.checkpoint().resuming(), second);
        let resumed = copy(of(records()), &to, &options, |_| ()).await;
        match resumes {
            true => assert!(resumed.unwrap().complete().unwrap().resumed),
            false => assert_eq!(resumed.unwrap_err().kind(), ErrorKind::InvalidValue),
        }
        // A copy that starts over may have any policy.
        let _ = copy(of(records()), &to, &with(setup.checkpoint(), second), |_| ()).await.unwrap();
    }
}

#[tokio::test]
async fn a_target_without_the_copied_records_is_refused() {
    for policy in [OnConflict::Fail, OnConflict::Skip, OnConflict::Overwrite] {
        let (setup, to) = (Setup::new(), memory(Vec::new()).await);
        let options = |checkpoint| setup.options(checkpoint).with_on_conflict(policy);
        let _ = copy(broken(records(), 150), &to, &options(setup.checkpoint()), |_| ()).await.unwrap();
        let whole = fs::read(setup.path()).unwrap();
        let emptied = memory(configs(99)).await;
        let resuming = options(setup.checkpoint().resuming());
        let error = copy(of(records()), &emptied, &resuming, |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("lacks a record that the checkpoint lists as written"), "{error}");
        assert_eq!(
            (digest(&emptied).await, fs::read(setup.path()).unwrap()),
            (digest(&memory(configs(99)).await).await, whole)
        );
        let _ = copy(of(records()), &to, &resuming, |_| ()).await.unwrap().complete().unwrap();
    }
}

/// The target lacks the records that failed. The checkpoint knows them, so they do not make it another
/// target.
#[tokio::test]
async fn a_resumed_copy_reports_earlier_failures() {
    let (setup, to) = (Setup::new(), super::faults::without_usage().await);
    let report = copy(broken(records(), 150), &to, &setup.options(setup.checkpoint()), |_| ()).await.unwrap();
    assert_eq!(report.tallies.usage.failed, 50);
    let options = setup.options(setup.checkpoint().resuming());
    let report = copy(of(records()), &to, &options, |_| ()).await.unwrap();
    assert_eq!((report.tallies.usage.failed, report.failures.len()), (100, 100));
    let first = &report.failures[0];
    assert_eq!((first.key.as_str(), first.field.as_ref().unwrap().as_str()), ("u0", "f0"));
    assert_eq!((first.error.kind(), first.error.is_retryable()), (ErrorKind::Unsupported, false));
    assert_eq!(first.error.to_string(), report.failures[99].error.to_string());
    assert_eq!(report.complete().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn the_order_of_kinds_in_the_filter_does_not_matter() {
    let (setup, to) = (Setup::new(), memory(Vec::new()).await);
    let with = |kinds: [RecordKind; 3], checkpoint| {
        let mut filter = Filter::default();
        filter.kinds = kinds.to_vec();
        setup.options(checkpoint).with_filter(filter)
    };
    use RecordKind::{Config, Usage};
    let options = with([Config, Usage, Config], setup.checkpoint());
    let _ = copy(broken(records(), 50), &to, &options, |_| ()).await.unwrap();
    let options = with([Usage, Config, Config], setup.checkpoint().resuming());
    assert!(copy(of(records()), &to, &options, |_| ()).await.unwrap().complete().unwrap().resumed);
}

#[tokio::test]
async fn a_checkpoint_may_be_deleted_during_the_copy() {
    let (setup, to) = (Setup::new(), memory(Vec::new()).await);
    let path = setup.path();
    let records = of(records()).inspect(move |_| drop(fs::remove_file(&path)));
    let _ = setup.copy(records, &to, setup.checkpoint()).await.unwrap().complete().unwrap();
}

#[tokio::test]
async fn resumes_after_being_dropped_at_any_await() {
    let wanted = digest(&memory(records()).await).await;
    for polls in (1..60).step_by(3) {
        let (setup, to) = (Setup::new(), memory(Vec::new()).await);
        {
            // Every third record yields to the executor.
            let slow = of(records()).enumerate().then(|(at, record)| async move {
                if at % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                record
            });
            let copying = setup.copy(slow, &to, setup.checkpoint());
            let elapsed = async {
                for _ in 0..polls {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { biased; _ = copying => {} () = elapsed => {} }
        }
        let report = setup.copy(of(records()), &to, setup.checkpoint().resuming()).await.unwrap();
        let _ = report.complete().unwrap();
        assert_eq!(digest(&to).await, wanted);
    }
}

#[tokio::test]
async fn starts_over_without_a_checkpoint_or_without_resume() {
    let (setup, to) = (Setup::new(), memory(Vec::new()).await);
    let report = setup.copy(broken(records(), 50), &to, setup.checkpoint().resuming()).await.unwrap();
    assert!(!report.resumed && setup.path().exists());
    let report = setup.copy(of(records()), &to, setup.checkpoint()).await.unwrap().complete().unwrap();
    assert_eq!((report.resumed, report.tallies.total().read), (false, 200));
}

#[tokio::test]
async fn only_the_checkpoint_of_the_same_copy_is_accepted() {
    let (setup, to) = (Setup::new(), memory(Vec::new()).await);
    let _ = setup.copy(broken(records(), 50), &to, setup.checkpoint()).await.unwrap();
    let whole = fs::read(setup.path()).unwrap();
    let refused = async |checkpoint: Checkpoint, filter: Filter| {
        let before = digest(&to).await;
        let options = setup.options(checkpoint).with_filter(filter);
        let error = copy(of(records()), &to, &options, |_| ()).await.unwrap_err();
        assert_eq!(digest(&to).await, before);
        assert!(error.to_string().contains(&*setup.path().to_string_lossy()), "it names the file: {error}");
        error.kind()
    };
    let all = Filter::default;
    let mut some = all();
    some.include = vec!["k*".parse().unwrap()];
    let other = |source, target| Checkpoint::new(setup.path(), source, target);
    for (checkpoint, filter) in [
        (other("here", "elsewhere"), all()),
        (other("elsewhere", "there"), all()),
        (other("her", "ethere"), all()),
        (setup.checkpoint(), some),
    ] {
        // A copy that does not resume must not overwrite it, either.
        assert_eq!(refused(checkpoint.clone(), filter.clone()).await, ErrorKind::InvalidValue);
        assert_eq!(refused(checkpoint.resuming(), filter).await, ErrorKind::InvalidValue);
        assert_eq!(fs::read(setup.path()).unwrap(), whole);
    }

    let mut newer: Value = serde_json::from_slice(&whole).unwrap();
    newer["version"] = json!(2);
    for (text, kind) in [
        (newer.to_string().into_bytes(), ErrorKind::Unsupported),
        (b"my notes".to_vec(), ErrorKind::InvalidValue),
        (b"{}".to_vec(), ErrorKind::InvalidValue),
        (Vec::new(), ErrorKind::InvalidValue),
        (whole[..whole.len() / 2].to_vec(), ErrorKind::InvalidValue),
    ] {
        fs::write(setup.path(), &text).unwrap();
        assert_eq!(refused(setup.checkpoint().resuming(), all()).await, kind);
        assert_eq!(refused(setup.checkpoint(), all()).await, kind);
        assert_eq!(fs::read(setup.path()).unwrap(), text, "the file is unchanged");
    }
}

#[tokio::test]
async fn fails_at_the_start_if_the_checkpoint_cannot_be_created() {
    let (setup, to) = (Setup::new(), memory(Vec::new()).await);
    let nowhere = Checkpoint::new(setup.dir.path().join("no/such/folder"), "here", "there");
    assert!(setup.copy(of(records()), &to, nowhere).await.is_err());
    assert!(to.list_configs().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_checkpoint_is_saved_during_the_copy() {
    let (setup, to) = (Setup::new(), memory(Vec::new()).await);
    let seen = Arc::new(AtomicU64::new(0));
    let (counter, path) = (seen.clone(), setup.path());
    let slow = of(records()).enumerate().then(move |(at, record)| {
        let (counter, path) = (counter.clone(), path.clone());
        async move {
            if at % 20 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(150)).await;
                let text: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
                let read = text["tallies"]["configs"]["read"].as_u64().unwrap();
                counter.fetch_max(read, Ordering::Relaxed);
            }
            record
        }
    });
    let _ = setup.copy(slow, &to, setup.checkpoint()).await.unwrap().complete().unwrap();
    assert!(seen.load(Ordering::Relaxed) >= 20, "{seen:?}");
}
