//! Finding the records of a kind among everything that the server holds.

use std::collections::BTreeSet;

use redis::{Value, cmd};

use super::{
    Redis, failure,
    layout::Space,
    reply,
    server::{Call, Effect},
};
use crate::{Key, Result};

/// How many keys the server looks at in one step: it serves nobody else meanwhile.
const STEP: u32 = 1000;

impl Redis {
    /// The keys of all records of a kind, sorted. A server may name one twice.
    pub(super) async fn scan(&self, call: &Call<'_>, space: Space) -> Result<Vec<Key>> {
        let pattern = self.layout.pattern(space);
        let mut keys = BTreeSet::new();
        for (_, node) in self.server.nodes() {
            let mut cursor = b"0".to_vec();
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(STEP);
                let step: [Value; 2] = reply::list(call.send_to(&node, Effect::Read, &scan).await?)?
                    .try_into()
                    .map_err(|_| failure::unexpected_reply(Effect::Read))?;
                let [next, names] = step;
                for name in reply::list(names)? {
                    let name = reply::bytes(name)?.unwrap_or_default();
                    keys.insert(self.layout.key(space, &name)?);
                }
                cursor = reply::bytes(next)?.unwrap_or_default();
                if cursor == b"0" {
                    break;
                }
            }
        }
        Ok(keys.into_iter().collect())
    }
}
