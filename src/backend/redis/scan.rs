//! Finding the records of a kind among everything that the servers hold.

use std::collections::BTreeSet;

use redis::{Cmd, Value, cmd};

use super::{Redis, connection::Lease, error, layout::Space, node::Node, reply, server::Call};
use crate::{Error, ErrorKind, Key, Result, backend::remote::Effect};

/// How many keys the server looks at in one step, some milliseconds, in which it serves no other client. Fewer would make the
/// network what a list waits for, where a database holds millions of keys of others.
const STEP: u64 = 5_000;

/// A server that is lost more often than this while it is listed is an error.
const RESTARTS: usize = 5;

impl Redis {
    /// The keys of all records of a kind, sorted.
    pub(super) async fn scan(&self, call: &Call<'_>, space: Space) -> Result<Vec<Key>> {
        self.scan_after(call, space, None, usize::MAX).await
    }

    /// The first keys behind one, sorted. A SCAN has no order, so a caller that does not want to hold them all looks through all of them
    /// again for the next ones.
    pub(super) async fn scan_after(
        &self,
        call: &Call<'_>,
        space: Space,
        after: Option<&Key>,
        most: usize,
    ) -> Result<Vec<Key>> {
        let mut keys = BTreeSet::new();
        self.names(call, &self.layout.pattern(Some(space)), |name| {
            let key = self.layout.key(space, name)?;
            let is_behind = after.is_none_or(|after| key > *after);
            let has_room = keys.len() < most || keys.last().is_some_and(|last| key < *last);
            if is_behind && has_room && keys.insert(key) && keys.len() > most {
                keys.pop_last();
            }
            Ok(())
        })
        .await?;
        Ok(keys.into_iter().collect())
    }

    /// Every name that matches, some of them more than once.
    pub(super) async fn names(
        &self,
        call: &Call<'_>,
        pattern: &str,
        mut see: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<()> {
        let (mut looked, mut matched) = (0, 0);
        for (_, node) in self.server.nodes() {
            let mut restarts = 0;
            let (mut cursor, mut lease) = (b"0".to_vec(), None);
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP);
                match step(call, &node, lease.take(), &scan).await {
                    Ok((next, names, same)) => {
                        looked += STEP;
                        matched += names.len() as u64;
                        names.iter().try_for_each(|name| see(name))?;
                        if next == b"0" {
                            break;
                        }
                        (cursor, lease) = (next, Some(same));
                    }
                    // A cursor means something only to the process that gave it; now it may be another.
                    Err(error) if error.kind() == ErrorKind::Unavailable && restarts < RESTARTS => {
                        restarts += 1;
                        cursor = b"0".to_vec();
                    }
                    Err(error) if error.kind() == ErrorKind::Timeout && looked > 0 && call.is_over() => {
                        return Err(too_many(looked, matched));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// The time was over before all keys were looked at.
#[cold]
fn too_many(looked: u64, matched: u64) -> Error {
    let way = if matched < looked / 2 {
        "the others, of other programs or cache values, slow it down: give the store a database or a server of its own, or \
         a longer `deadline`"
    } else {
        "give it a longer `deadline`, or export it, which takes the time that it needs"
    };
    let message = format!(
        "the time was over before all keys were looked at: about {looked} were, and {matched} of them are what is looked for; {way}"
    );
    Error::new(ErrorKind::Timeout, message)
}

/// One step, on the connection of the step before: the next cursor, and names.
async fn step(
    call: &Call<'_>,
    node: &Node,
    lease: Option<Lease>,
    scan: &Cmd,
) -> Result<(Vec<u8>, Vec<Vec<u8>>, Lease)> {
    let (reply, lease) = call.send_next(node, lease, scan).await?;
    let wrong = || error::unexpected_reply(Effect::Read);
    let [next, names]: [Value; 2] = reply::list(reply)?.try_into().map_err(|_| wrong())?;
    let names = reply::list(names)?.into_iter().map(|name| reply::bytes(name)?.ok_or_else(wrong));
    Ok((reply::bytes(next)?.ok_or_else(wrong)?, names.collect::<Result<_>>()?, lease))
}
