//! [`copy`]: from a source to a store.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_core::Stream;
use futures_util::{
    StreamExt,
    future::{Either, select},
    stream::FuturesOrdered,
};
use tokio::sync::watch;

use super::{
    CopyEvent, CopyOptions, CopyReport, MAX_NAMED,
    checkpoint::Place,
    chunk::{Chunk, Chunks, write},
    join::{Sorted, has},
};
use crate::{Error, ErrorKind, Exportable, Outcome, Record, RecordKind, Result, Storage};

/// The next chunk, and who makes those after it. By value, since closures over borrows can't be spawned by generic code.
async fn next<S, T>(mut chunks: Chunks<'_, S, T>) -> (Option<Chunk>, Chunks<'_, S, T>)
where
    S: Stream<Item = Result<Record>> + Send,
    T: Stream<Item = Result<Record>> + Send,
{
    (chunks.next().await, chunks)
}

/// How often a checkpoint is saved.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// Copies records to a store; what else it holds stays.
///
/// - Records are written in chunks, several at once, while the source is read on; the source is read no faster than the
///   target takes it.
/// - A record that the target will never take (too large for its server, or of a kind that it does not have) is a failure in the
///   report, and stops nothing. What it can't take now is tried again, nine times in ten seconds or more, and then stops the copy.
/// - An error of the source, a conflict under [`OnConflict::Fail`](super::OnConflict::Fail), or a target that is lost end the copy in
///   order: what was read before is written, the checkpoint is saved, and the report says why it
///   [stopped](CopyReport::stopped). It is a part then, and not a failure of this function. If that error's outcome is
///   [`Unknown`](Outcome::Unknown), some records that are not counted as written may be.
/// - A counter is set to its count, and a record is written as a whole, so that copying again is harmless.
/// - An export of the target that breaks off is begun again, as long as it comes further. One of the source is the source's end:
///   `MongoDb`'s has five minutes, and a copy that takes longer is to be resumed.
/// - May be dropped at any await: a part is copied then, and the checkpoint is a fifth of a second old, and what is written since then is written again.
///
/// # Errors
///
/// Before anything is written: options that make no sense, a checkpoint that is of another copy or can't be read or written, a target
/// that does not have what the checkpoint says, or one that must be read and [can't import
/// meanwhile](Exportable::imports_while_exporting).
pub async fn copy<B: Exportable>(
    source: impl Stream<Item = Result<Record>> + Send,
    target: &Storage<B>,
    options: &CopyOptions,
    progress: impl FnMut(CopyEvent) + Send,
) -> Result<CopyReport> {
    options.check()?;
    if options.compares() && !options.dry_run && !target.imports_while_exporting() {
        return Err(Error::new(
            ErrorKind::InvalidValue,
            "the target's pool has one connection, and the target is read and written at once: it needs two",
        ));
    }
    let begun = Instant::now();
    let mut place = match &options.checkpoint {
        Some(checkpoint) if !options.dry_run => Some(Place::open(checkpoint, options).await?),
        _ => None,
    };
    let mut report = CopyReport { dry_run: options.dry_run, ..CopyReport::default() };
    // Chunks tell of their tries, too.
    let progress = Arc::new(Mutex::new(progress));
    let tell = |event| progress.lock().unwrap_or_else(PoisonError::into_inner)(event);
    let mut after = None;
    if let Some(place) = place.as_ref().filter(|place| place.resumed) {
        if let Some(held) = &place.held
            && !has(target.export(), held).await?
        {
            return Err(another_target());
        }
        (report.resumed, report.tallies, after) = (true, place.tallies, place.through.clone());
        report.failures.clone_from(&place.failures);
        tell(CopyEvent::Resumed(report.tallies));
    }

    let source = Sorted::new(source, "source", &options.filter, after.clone());
    let compared =
        options.compares().then(|| Sorted::renewed(|| target.export(), "target", &options.filter, after));
    let imports = RecordKind::ALL.into_iter().filter(|kind| target.imports(*kind)).collect();
    let mut making = Some(Box::pin(next(Chunks::new(source, compared, options, imports))));
    let (stop, stops) = watch::channel(false);
    // In the order of the source, so that all before the last one is written.
    let mut writing = FuturesOrdered::new();
    let mut saved = Instant::now();
    loop {
        let written = match &mut making {
            Some(make) if writing.len() < options.concurrency => {
                let made = match writing.is_empty() {
                    true => Either::Left(make.await),
                    false => match select(make, writing.next()).await {
                        Either::Left((made, _)) => Either::Left(made),
                        Either::Right((written, _)) => Either::Right(written),
                    },
                };
                match made {
                    Either::Left((None, _)) => {
                        making = None;
                        continue;
                    }
                    Either::Left((Some(chunk), chunks)) => {
                        let (tell, stops) = (progress.clone(), stops.clone());
                        writing.push_back(write(target, chunk, options.dry_run, stops, move |event| {
                            tell.lock().unwrap_or_else(PoisonError::into_inner)(event);
                        }));
                        making = Some(Box::pin(next(chunks)));
                        continue;
                    }
                    Either::Right(written) => written,
                }
            }
            _ => writing.next().await,
        };
        let Some(Chunk { tallies, failures, through, held, mut stopped, .. }) = written else { break };
        report.tallies.add(&tallies);
        for failure in &failures {
            tell(CopyEvent::Failed(failure.clone()));
            if report.failures.len() < MAX_NAMED {
                report.failures.push(failure.clone());
            }
        }
        tell(CopyEvent::Progress(report.tallies));
        if let Some(first) = report.stopped.take() {
            // Those that were under way with it are counted, and not passed over when the copy is resumed.
            let unknown = stopped.is_some_and(|error| error.outcome() == Outcome::Unknown);
            report.stopped = Some(if unknown { first.with_outcome(Outcome::Unknown) } else { first });
            continue;
        }
        if let Some((place, through)) = place.as_mut().zip(through) {
            place.advance(through, held, report.tallies, &failures);
        }
        if let Some(place) = &place
            && stopped.is_none()
            && saved.elapsed() >= SAVE_EVERY
        {
            stopped = place.save().await.err();
            saved = Instant::now();
        }
        if stopped.is_some() {
            report.stopped = stopped;
            making = None;
            stop.send_replace(true);
        }
    }
    let kept = match place {
        Some(place) if report.stopped.is_none() => place.remove().await,
        Some(place) => place.save().await,
        None => Ok(()),
    };
    // What stopped it says more than that its place can't be kept either.
    report.stopped = report.stopped.or(kept.err());
    report.elapsed = begun.elapsed();
    Ok(report)
}

#[cold]
fn another_target() -> Error {
    Error::new(ErrorKind::Conflict, "the target does not have what the checkpoint says that it was given; without it the copy begins anew")
        .with_retryable(false)
}
