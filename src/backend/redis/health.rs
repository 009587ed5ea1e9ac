//! Checks that the servers accept reads and writes. It sends a write that changes nothing, because only a
//! write meets every reason for which a server refuses writes.

use futures_util::future::{join_all, select_ok};
use redis::{Cmd, cmd};

use super::{Redis, cluster::SlotGroup, server::Call, slot::SLOTS};
use crate::{Error, ErrorKind, Outcome, Result, backend::remote::Effect};

/// A write that changes nothing, whatever the key holds. It is refused like every write by a replica, by a
/// server that is full, can't save or has too few replicas, and for a user who may not write.
fn probe(name: &str) -> Cmd {
    cmd("SETRANGE").arg(name).arg(0).arg("").take()
}

/// Whether a store can be opened on a server that refused a write with this error, to read from it or to
/// repair it. `MOVED` is the reply of a cluster's server that is opened alone.
fn can_open(error: &Error) -> bool {
    matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS" | "NOPERM" | "CLUSTERDOWN" | "MOVED"))
}

impl Redis {
    /// Checks every server that owns data. In a cluster it first reads again which servers those are.
    pub(super) async fn check_health(&self) -> Result<()> {
        let call = self.call()?;
        call.refresh().await?;
        // If all keys are in one slot the other slots do not matter.
        let groups = call.slot_groups(self.layout.health_names()).filter(|_| !self.layout.is_in_one_slot());
        let Some(groups) = groups else {
            return probe_write(&call, self.server.probe_effect, &self.layout.health()).await;
        };
        let probes = join_all(groups.iter().map(async |SlotGroup { name, .. }| match name {
            Some(name) => probe_write(&call, self.server.probe_effect, name).await,
            None => Err(Error::new(ErrorKind::Unavailable, "no server owns them")),
        }));
        let (mut slots, mut first_error) = (0, None);
        for (group, probed) in groups.iter().zip(probes.await) {
            if let Err(error) = probed {
                slots += group.slots;
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), |error| Err(not_served(slots, &error)))
    }

    /// Opening needs a server that replies and is not a replica, or in a cluster one master that replies.
    pub(super) async fn check_open(&self) -> Result<()> {
        let call = self.call()?;
        let reply = if self.server.is_cluster() {
            let nodes = self.server.nodes();
            let ping = cmd("PING");
            let pings = nodes.iter().map(|node| Box::pin(call.send_to(node, Effect::Read, &ping)));
            select_ok(pings).await.map(drop)
        } else {
            probe_write(&call, Effect::Read, &self.layout.health()).await
        };
        reply.or_else(|error| if can_open(&error) { Ok(()) } else { Err(error) })
    }
}

async fn probe_write(call: &Call<'_>, effect: Effect, name: &str) -> Result<()> {
    match call.send(effect, &probe(name)).await {
        Ok(_) => Ok(()),
        // The key is another program's. The server got as far as checking its type.
        Err(error) if error.code() == Some("WRONGTYPE") => Ok(()),
        // Whether or not it was applied, it changed nothing.
        Err(error) => Err(error.with_outcome(Outcome::NotApplied)),
    }
}

#[cold]
fn not_served(slots: usize, cause: &Error) -> Error {
    let message = format!("{slots} of the {SLOTS} slots of the Redis cluster are not served: {cause}");
    let error = Error::new(cause.kind(), message).with_retryable(cause.is_retryable());
    match cause.code() {
        Some(code) => error.with_code(code),
        None => error,
    }
}
