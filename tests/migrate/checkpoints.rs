//! A copy that did not come to its end goes on where it was.

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
    Count, Error, ErrorKind, Memory, Record, RecordKind, Result, Storage,
    migrate::{Checkpoint, CopyEvent, CopyOptions, CopyReport, Filter, OnConflict, copy},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::records::{configs, digest, memory, of, usage};

struct Place {
    dir: TempDir,
}

impl Place {
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
        let mut options = CopyOptions::default().with_checkpoint(checkpoint);
        options.batch = 10;
        options
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

/// The first so many, and then an error.
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
async fn goes_on_where_it_was() {
    for after in [0, 1, 9, 10, 11, 100, 105, 199, 200] {
        let (place, to) = (Place::new(), memory(Vec::new()).await);
        let report = place.copy(broken(records(), after), &to, place.checkpoint()).await.unwrap();
        assert_eq!(report.stopped.as_ref().unwrap().to_string(), "the source is lost");
        assert_eq!(report.tallies.total().written, after as u64, "what was read is written");
        let mode = fs::metadata(place.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let count = Count::default();
        let mut resumed = None;
        let options = place.options(place.checkpoint().resuming());
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
        assert_eq!(count.of("import"), chunks, "after {after}: what is known is not written again");
        assert_eq!(report.tallies.total().written, 200);
        assert_eq!(report.tallies.total().read, 200);
        assert_eq!(digest(&to).await, digest(&memory(records()).await).await);
        assert!(!place.path().exists(), "all is done");
    }
}

#[tokio::test]
async fn a_conflict_is_met_again() {
    let (place, to) = (Place::new(), memory(vec![crate::records::config("k00042", json!("other"))]).await);
    let report = place.copy(of(records()), &to, place.checkpoint()).await.unwrap();
    assert_eq!(report.stopped.unwrap().kind(), ErrorKind::Conflict);
    let report = place.copy(of(records()), &to, place.checkpoint().resuming()).await.unwrap();
    assert_eq!(report.stopped.unwrap().kind(), ErrorKind::Conflict, "it is still there");
    let options = place.options(place.checkpoint().resuming()).with_on_conflict(OnConflict::Overwrite);
    let _ = copy(of(records()), &to, &options, |_| ()).await.unwrap().complete().unwrap();
    assert_eq!(digest(&to).await, digest(&memory(records()).await).await);
}

/// Its records up to the checkpoint are not what they would be under the other policy.
#[tokio::test]
async fn a_policy_that_was_followed_is_kept() {
    use OnConflict::{Fail, Overwrite, Skip};
    for (first, second, goes_on) in [
        (Fail, Skip, true),
        (Fail, Overwrite, true),
        (Skip, Overwrite, false),
        (Skip, Fail, false),
        (Overwrite, Skip, false),
        (Overwrite, Overwrite, true),
    ] {
        let (place, to) = (Place::new(), memory(Vec::new()).await);
        let with = |checkpoint, policy| place.options(checkpoint).with_on_conflict(policy);
        let _ = copy(broken(records(), 50), &to, &with(place.checkpoint(), first), |_| ()).await.unwrap();
        let options = with(place.checkpoint().resuming(), second);
        let resumed = copy(of(records()), &to, &options, |_| ()).await;
        match goes_on {
            true => assert!(resumed.unwrap().complete().unwrap().resumed),
            false => assert_eq!(resumed.unwrap_err().kind(), ErrorKind::InvalidValue),
        }
        // From the beginning every policy may be followed.
        let _ = copy(of(records()), &to, &with(place.checkpoint(), second), |_| ()).await.unwrap();
    }
}

#[tokio::test]
async fn a_target_without_what_was_copied_is_another_one() {
    for policy in [OnConflict::Fail, OnConflict::Skip, OnConflict::Overwrite] {
        let (place, to) = (Place::new(), memory(Vec::new()).await);
        let options = |checkpoint| place.options(checkpoint).with_on_conflict(policy);
        let _ = copy(broken(records(), 150), &to, &options(place.checkpoint()), |_| ()).await.unwrap();
        let whole = fs::read(place.path()).unwrap();
        let emptied = memory(configs(99)).await;
        let resuming = options(place.checkpoint().resuming());
        let error = copy(of(records()), &emptied, &resuming, |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("lacks a record that the checkpoint lists as written"), "{error}");
        assert_eq!(
            (digest(&emptied).await, fs::read(place.path()).unwrap()),
            (digest(&memory(configs(99)).await).await, whole)
        );
        let _ = copy(of(records()), &to, &resuming, |_| ()).await.unwrap().complete().unwrap();
    }
}

/// What failed is no longer in the target, but it is known, and it is no reason to think that the target is another one.
#[tokio::test]
async fn what_failed_is_named_after_a_kill_too() {
    let (place, to) = (Place::new(), crate::faults::without_usage().await);
    let report = copy(broken(records(), 150), &to, &place.options(place.checkpoint()), |_| ()).await.unwrap();
    assert_eq!(report.tallies.usage.failed, 50);
    let options = place.options(place.checkpoint().resuming());
    let report = copy(of(records()), &to, &options, |_| ()).await.unwrap();
    assert_eq!((report.tallies.usage.failed, report.failures.len()), (100, 100));
    let first = &report.failures[0];
    assert_eq!((first.key.as_str(), first.field.as_ref().unwrap().as_str()), ("u0", "f0"));
    assert_eq!((first.error.kind(), first.error.is_retryable()), (ErrorKind::Unsupported, false));
    assert_eq!(first.error.to_string(), report.failures[99].error.to_string());
    assert_eq!(report.complete().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn the_order_of_kinds_says_nothing() {
    let (place, to) = (Place::new(), memory(Vec::new()).await);
    let with = |kinds: [RecordKind; 3], checkpoint| {
        let mut filter = Filter::default();
        filter.kinds = kinds.to_vec();
        place.options(checkpoint).with_filter(filter)
    };
    use RecordKind::{Config, Usage};
    let options = with([Config, Usage, Config], place.checkpoint());
    let _ = copy(broken(records(), 50), &to, &options, |_| ()).await.unwrap();
    let options = with([Usage, Config, Config], place.checkpoint().resuming());
    assert!(copy(of(records()), &to, &options, |_| ()).await.unwrap().complete().unwrap().resumed);
}

#[tokio::test]
async fn a_checkpoint_that_is_gone_is_no_failure() {
    let (place, to) = (Place::new(), memory(Vec::new()).await);
    let path = place.path();
    let records = of(records()).inspect(move |_| drop(fs::remove_file(&path)));
    let _ = place.copy(records, &to, place.checkpoint()).await.unwrap().complete().unwrap();
}

#[tokio::test]
async fn dropped_at_any_time_it_goes_on() {
    let wanted = digest(&memory(records()).await).await;
    for polls in (1..60).step_by(3) {
        let (place, to) = (Place::new(), memory(Vec::new()).await);
        {
            // Every third record takes a turn of the executor.
            let slow = of(records()).enumerate().then(|(at, record)| async move {
                if at % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                record
            });
            let copying = place.copy(slow, &to, place.checkpoint());
            let turns = async {
                for _ in 0..polls {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { biased; _ = copying => {} () = turns => {} }
        }
        let report = place.copy(of(records()), &to, place.checkpoint().resuming()).await.unwrap();
        let _ = report.complete().unwrap();
        assert_eq!(digest(&to).await, wanted);
    }
}

#[tokio::test]
async fn without_a_file_it_begins_at_the_beginning_and_without_resume_too() {
    let (place, to) = (Place::new(), memory(Vec::new()).await);
    let report = place.copy(broken(records(), 50), &to, place.checkpoint().resuming()).await.unwrap();
    assert!(!report.resumed && place.path().exists());
    let report = place.copy(of(records()), &to, place.checkpoint()).await.unwrap().complete().unwrap();
    assert_eq!((report.resumed, report.tallies.total().read), (false, 200));
}

#[tokio::test]
async fn only_its_own_checkpoint_is_taken() {
    let (place, to) = (Place::new(), memory(Vec::new()).await);
    let _ = place.copy(broken(records(), 50), &to, place.checkpoint()).await.unwrap();
    let whole = fs::read(place.path()).unwrap();
    let refused = async |checkpoint: Checkpoint, filter: Filter| {
        let before = digest(&to).await;
        let options = place.options(checkpoint).with_filter(filter);
        let error = copy(of(records()), &to, &options, |_| ()).await.unwrap_err();
        assert_eq!(digest(&to).await, before);
        error.kind()
    };
    let all = Filter::default;
    let mut some = all();
    some.include = vec!["k*".parse().unwrap()];
    let other = |source, target| Checkpoint::new(place.path(), source, target);
    for (checkpoint, filter) in [
        (other("here", "elsewhere"), all()),
        (other("elsewhere", "there"), all()),
        (other("her", "ethere"), all()),
        (place.checkpoint(), some),
    ] {
        // Not even to be replaced: somebody may want it.
        assert_eq!(refused(checkpoint.clone(), filter.clone()).await, ErrorKind::InvalidValue);
        assert_eq!(refused(checkpoint.resuming(), filter).await, ErrorKind::InvalidValue);
        assert_eq!(fs::read(place.path()).unwrap(), whole);
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
        fs::write(place.path(), &text).unwrap();
        assert_eq!(refused(place.checkpoint().resuming(), all()).await, kind);
        assert_eq!(refused(place.checkpoint(), all()).await, kind);
        assert_eq!(fs::read(place.path()).unwrap(), text, "it is left as it is");
    }
}

#[tokio::test]
async fn it_needs_a_place_before_it_begins() {
    let (place, to) = (Place::new(), memory(Vec::new()).await);
    let nowhere = Checkpoint::new(place.dir.path().join("no/such/folder"), "here", "there");
    assert!(place.copy(of(records()), &to, nowhere).await.is_err());
    assert!(to.list_configs().await.unwrap().is_empty());
}

#[tokio::test]
async fn it_is_saved_while_the_copy_goes_on() {
    let (place, to) = (Place::new(), memory(Vec::new()).await);
    let seen = Arc::new(AtomicU64::new(0));
    let (counter, path) = (seen.clone(), place.path());
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
    let _ = place.copy(slow, &to, place.checkpoint()).await.unwrap().complete().unwrap();
    assert!(seen.load(Ordering::Relaxed) >= 20, "{seen:?}");
}
