//! [`copy`]: copies the records of a source to a store.

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
    checkpoint::Progress,
    chunk::{Chunk, Chunks, write},
    join::{Sorted, has},
};
use crate::{Error, ErrorKind, Exportable, Outcome, Record, RecordKind, Result, Storage};

/// The next chunk, and the others. By value, because generic code cannot spawn closures over borrows.
async fn next<S, T>(mut chunks: Chunks<'_, S, T>) -> (Option<Chunk>, Chunks<'_, S, T>)
where
    S: Stream<Item = Result<Record>> + Send,
    T: Stream<Item = Result<Record>> + Send,
{
    (chunks.next().await, chunks)
}

/// How often a checkpoint is saved.
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// Copies records to a store. Other records in the store are kept.
///
/// - Records are written in chunks, several at once, while the source is read; the source is read no faster
///   than the target can write.
/// - A record that the target will never take (too large for its server, or of a kind that it does not store)
///   is a failure in the report and does not stop the copy. Transient errors are retried, with 9 attempts and
///   pauses of 16 s in total, and then stop the copy.
/// - The copy stops at an error of the source, at a conflict under
///   [`OnConflict::Fail`](super::OnConflict::Fail), or when the target is lost. It stops cleanly: records
///   that were read before are written, the checkpoint is saved, and this function returns a report whose
///   [`stopped`](CopyReport::stopped) has the reason. If the outcome of that error is
///   [`Unknown`](Outcome::Unknown), some records that are not counted as written may have been.
/// - A counter is set to its count, and a record is written as a whole, so copying again is harmless.
/// - If the target's export breaks off, it is restarted, as long as each run gets further. If the source's
///   does, the copy stops: `MongoDb` limits an export to five minutes, so a longer copy must be resumed.
/// - Cancel-safe: a dropped copy leaves part of the records written and a checkpoint at most 200 ms old. A
///   resumed copy writes the records after it again.
///
/// # Errors
///
/// Before anything is written: invalid options, a checkpoint of another copy or one that can't be read or
/// written, a target without the records that the checkpoint lists as written, or one that must be read and
/// [can't import meanwhile](Exportable::imports_while_exporting).
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
            "the target's pool has one connection, but the copy reads and writes at once and needs two",
        ));
    }
    let begun = Instant::now();
    let mut saved = match &options.checkpoint {
        Some(checkpoint) if !options.dry_run => {
            Some(Progress::open(checkpoint, &options.filter, options.on_conflict).await?)
        }
        _ => None,
    };
    let mut report = CopyReport { dry_run: options.dry_run, ..CopyReport::default() };
    // Shared, because chunks report their retries.
    let progress = Arc::new(Mutex::new(progress));
    let report_event = |event| progress.lock().unwrap_or_else(PoisonError::into_inner)(event);
    let mut after = None;
    if let Some(saved) = saved.as_ref().filter(|saved| saved.resumed) {
        if let Some(held) = &saved.held
            && !has(target.export(), held).await?
        {
            return Err(saved.another_target());
        }
        (report.resumed, report.tallies, after) = (true, saved.tallies, saved.through.clone());
        report.failures.clone_from(&saved.failures);
        report_event(CopyEvent::Resumed(report.tallies));
    }

    let source = Sorted::new(source, "source", &options.filter, after.clone());
    let compared =
        options.compares().then(|| Sorted::reopening(|| target.export(), "target", &options.filter, after));
    let imports = RecordKind::ALL.into_iter().filter(|kind| target.imports(*kind)).collect();
    let mut reading = Some(Box::pin(next(Chunks::new(source, compared, options, imports))));
    let (stop, stops) = watch::channel(false);
    // In the order of the source, so that a chunk's result comes after those of all chunks before it.
    let mut writing = FuturesOrdered::new();
    let mut saved_at = Instant::now();
    loop {
        let written = match &mut reading {
            Some(read) if writing.len() < options.concurrency => {
                let ended = match writing.is_empty() {
                    true => Either::Left(read.await),
                    false => match select(read, writing.next()).await {
                        Either::Left((read, _)) => Either::Left(read),
                        Either::Right((written, _)) => Either::Right(written),
                    },
                };
                match ended {
                    Either::Left((None, _)) => {
                        reading = None;
                        continue;
                    }
                    Either::Left((Some(chunk), chunks)) => {
                        let (progress, stops) = (progress.clone(), stops.clone());
                        writing.push_back(write(target, chunk, options.dry_run, stops, move |event| {
                            progress.lock().unwrap_or_else(PoisonError::into_inner)(event);
                        }));
                        reading = Some(Box::pin(next(chunks)));
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
            report_event(CopyEvent::Failed(failure.clone()));
            if report.failures.len() < MAX_NAMED {
                report.failures.push(failure.clone());
            }
        }
        report_event(CopyEvent::Progress(report.tallies));
        if let Some(first) = report.stopped.take() {
            // Chunks that were written meanwhile count, but the checkpoint stays before the failed one.
            let unknown = stopped.is_some_and(|error| error.outcome() == Outcome::Unknown);
            report.stopped = Some(if unknown { first.with_outcome(Outcome::Unknown) } else { first });
            continue;
        }
        if let Some((saved, through)) = saved.as_mut().zip(through) {
            saved.advance(through, held, report.tallies, &failures);
        }
        if let Some(saved) = &saved
            && stopped.is_none()
            && saved_at.elapsed() >= SAVE_EVERY
        {
            stopped = saved.save().await.err();
            saved_at = Instant::now();
        }
        if stopped.is_some() {
            report.stopped = stopped;
            reading = None;
            stop.send_replace(true);
        }
    }
    let ended = match saved {
        Some(saved) if report.stopped.is_none() => saved.remove().await,
        Some(saved) => saved.save().await,
        None => Ok(()),
    };
    // The error that stopped the copy matters more than a checkpoint that can't be saved.
    report.stopped = report.stopped.or(ended.err());
    report.elapsed = begun.elapsed();
    Ok(report)
}
