//! Whether the servers take reads and writes: they are sent a write that changes nothing, since nothing else meets all the
//! reasons for which a server refuses one.

use futures_util::future::{join_all, select_ok};
use redis::{Cmd, cmd};

use super::{
    Redis,
    cluster::{Place, SLOTS},
    server::Call,
};
use crate::{Error, ErrorKind, Outcome, Result, backend::remote::Effect};

/// Changes nothing, whatever the key holds. A replica, a server that is full, that can't save or has too few replicas, and
/// one that the user may not write to, refuse it as they refuse every write.
fn probe(name: &str) -> Cmd {
    let mut probe = cmd("SETRANGE");
    probe.arg(name).arg(0).arg("");
    probe
}

/// Whether a server that refused a write serves what is left: it can be opened, to be read or mended. `MOVED` is what one
/// server of a cluster says that is opened alone.
fn serves_the_rest(error: &Error) -> bool {
    matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS" | "NOPERM" | "CLUSTERDOWN" | "MOVED"))
}

impl Redis {
    /// Asks every server that owns data, after who they are.
    pub(super) async fn check_health(&self) -> Result<()> {
        let call = self.call()?;
        call.learn().await?;
        // Where all keys are in one slot the others do not matter.
        let places = call.places(self.layout.health_names()).filter(|_| !self.layout.is_in_one_slot());
        let Some(places) = places else { return try_write(&call, call.write(), &self.layout.health()).await };
        let tries = join_all(places.iter().map(async |Place { name, .. }| match name {
            Some(name) => try_write(&call, call.write(), name).await,
            None => Err(Error::new(ErrorKind::Unavailable, "they have no server")),
        }));
        let (mut slots, mut why) = (0, None);
        for (place, tried) in places.iter().zip(tries.await) {
            if let Err(error) = tried {
                slots += place.slots;
                why.get_or_insert(error);
            }
        }
        why.map_or(Ok(()), |why| Err(not_served(slots, &why)))
    }

    /// Opening needs a server that answers and is no replica; of a cluster one master that answers.
    pub(super) async fn check_open(&self) -> Result<()> {
        let call = self.call()?;
        let answer = if self.server.is_cluster() {
            let nodes = self.server.nodes();
            let ping = cmd("PING");
            let pings = nodes.iter().map(|(_, node)| Box::pin(call.send_to(node, Effect::Read, &ping)));
            select_ok(pings).await.map(drop)
        } else {
            try_write(&call, Effect::Read, &self.layout.health()).await
        };
        answer.or_else(|error| if serves_the_rest(&error) { Ok(()) } else { Err(error) })
    }
}

async fn try_write(call: &Call<'_>, effect: Effect, name: &str) -> Result<()> {
    match call.send(effect, &probe(name)).await {
        Ok(_) => Ok(()),
        // Another program's key: it came as far as that.
        Err(error) if error.code() == Some("WRONGTYPE") => Ok(()),
        // Whatever became of it, it changed nothing.
        Err(error) => Err(error.with_outcome(Outcome::NotApplied)),
    }
}

#[cold]
fn not_served(slots: usize, why: &Error) -> Error {
    let message = format!("{slots} of the {SLOTS} slots of the Redis cluster are not served: {why}");
    let error = Error::new(why.kind(), message).with_retryable(why.is_retryable());
    match why.code() {
        Some(code) => error.with_code(code),
        None => error,
    }
}
