//! Finds the records of one kind among all keys of the servers.

use std::collections::BTreeSet;

use redis::{Value, cmd};

use super::{Redis, error, layout::Space, server::Call};
use crate::{Error, ErrorKind, Key, Result, backend::remote::Effect, model::KeyRange};

/// How many keys the server examines per SCAN: some milliseconds, in which it serves no other client. With a
/// smaller number, round trips would dominate a list where the database holds millions of other keys.
const SCAN_COUNT: u64 = 5_000;

/// How often the scan of a server restarts after a lost connection before it fails.
const MAX_RESTARTS: usize = 5;

impl Redis {
    /// The keys of all records of one kind, sorted.
    pub(super) async fn scan(&self, call: &Call<'_>, space: Space) -> Result<Vec<Key>> {
        let mut all = Some(KeyRange::of_prefix(""));
        self.scan_first(call, space, "", &mut all, usize::MAX).await
    }

    /// The first keys in `rest`, a range of keys with this prefix, sorted: at most this number. Then
    /// `rest` is the range after them, or none if it has no more keys. SCAN has no order, so the next keys
    /// need another scan of the whole database.
    pub(super) async fn scan_first(
        &self,
        call: &Call<'_>,
        space: Space,
        prefix: &str,
        rest: &mut Option<KeyRange>,
        most: usize,
    ) -> Result<Vec<Key>> {
        let (Some(mut range), mut keys) = (rest.take(), BTreeSet::new()) else { return Ok(Vec::new()) };
        self.scan_names(call, &self.layout.pattern(Some(space), prefix), |name| {
            let Some((_, key)) = self.layout.record(name) else { return Ok(()) };
            let key = key?;
            let has_room = keys.len() < most || keys.last().is_some_and(|last| key < *last);
            if has_room && range.contains(&key) && keys.insert(key) && keys.len() > most {
                keys.pop_last();
            }
            Ok(())
        })
        .await?;
        let last = keys.last().filter(|_| keys.len() == most);
        *rest = last.is_some_and(|last| range.begin_after(last)).then_some(range);
        Ok(keys.into_iter().collect())
    }

    /// Visits every name that matches, some of them more than once.
    pub(super) async fn scan_names(
        &self,
        call: &Call<'_>,
        pattern: &str,
        mut visit: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<()> {
        let (mut examined, mut matched) = (0, 0);
        for node in self.server.nodes() {
            let mut restarts = 0;
            let (mut cursor, mut connection) = (b"0".to_vec(), None);
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_COUNT);
                match call.send_on(&node, &mut connection, &scan).await.and_then(page) {
                    Ok((next, names)) => {
                        examined += SCAN_COUNT;
                        matched += names.len() as u64;
                        names.iter().try_for_each(|name| visit(name))?;
                        if next == b"0" {
                            break;
                        }
                        cursor = next;
                    }
                    // The server may be a new process, for which the cursor is invalid.
                    Err(error) if error.kind() == ErrorKind::Unavailable && restarts < MAX_RESTARTS => {
                        restarts += 1;
                        (cursor, connection) = (b"0".to_vec(), None);
                    }
                    Err(error) if error.kind() == ErrorKind::Timeout && examined > 0 && call.is_over() => {
                        return Err(deadline_passed(examined, matched));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

#[cold]
fn deadline_passed(examined: u64, matched: u64) -> Error {
    let hint = if matched < examined / 2 {
        "the other keys, of other programs or of cache values, slow it down: give the store a database or a server of its \
         own, or a longer `deadline`"
    } else {
        "set a longer `deadline`, or use an export, which has no deadline as a whole"
    };
    let message = format!(
        "the deadline passed before all keys were examined: about {examined} were, of which {matched} matched; {hint}"
    );
    Error::new(ErrorKind::Timeout, message)
}

/// The next cursor, and the names.
fn page(reply: Value) -> Result<(Vec<u8>, Vec<Vec<u8>>)> {
    redis::from_redis_value(reply).map_err(|_| error::unexpected_reply(Effect::Read))
}
