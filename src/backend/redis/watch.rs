//! Watches: the masters tell what changes, over a connection each.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_core::Stream;
use futures_util::future::try_join_all;
use tokio::time::sleep;

use super::{
    Redis,
    cluster::Cluster,
    layout::Layout,
    pushed::Pushed,
    server::{Server, Servers},
    target::Target,
    tracking::Tracked,
};
use crate::{
    Error, ErrorKind, Result,
    backend::feed::{Change, Feed, IDLE_EVERY, Source, Teller},
    capability::Watch,
    event::{Cursor, Event, WatchOptions},
};

/// How often the sentinels are asked for the master, or a cluster's server for the slots.
const TOPOLOGY_EVERY: Duration = Duration::from_secs(10);

/// The masters of a store, as the source of changes.
#[derive(Clone)]
struct Masters {
    server: Weak<Server>,
    layout: Arc<Layout>,
    feed: Feed,
}

impl Masters {
    fn server(&self) -> Result<Arc<Server>> {
        self.server.upgrade().ok_or_else(Error::closed)
    }

    /// Connects to all masters of this time.
    async fn track(&self, pushed: &Arc<Pushed>) -> Result<Vec<Tracked>> {
        let server = self.server()?;
        if let Servers::Cluster(cluster) = &server.servers {
            cluster.refresh().await?;
        }
        let nodes = server.nodes();
        let tracked = try_join_all(nodes.iter().map(|node| {
            let pushed = pushed.clone();
            let settings = node.shared.settings.with_pushes(move |info| pushed.receive(info));
            async move { Tracked::open(node, &settings, &self.layout).await }
        }))
        .await?;
        // What is read after the Resync must come from the servers that tell their changes.
        for (node, tracked) in nodes.iter().zip(&tracked) {
            node.leave_others(&tracked.opened.place)?;
        }
        Ok(tracked)
    }

    /// Asks the masters for a reply again and again.
    async fn check(&self, tracked: &[Tracked], pushed: &Pushed, teller: &Teller) -> Result<Infallible> {
        loop {
            sleep(IDLE_EVERY).await;
            try_join_all(tracked.iter().map(Tracked::check)).await?;
            if let Servers::Cluster(cluster) = &self.server()?.servers {
                check_map(cluster, tracked)?;
            }
            // Changes that came before the replies are told first.
            if pushed.tell(teller) {
                teller.idle(None);
            }
        }
    }

    /// Looks again and again whether there are other masters.
    async fn check_topology(&self, tracked: &[Tracked]) -> Result<Infallible> {
        loop {
            sleep(TOPOLOGY_EVERY).await;
            match &self.server()?.servers {
                Servers::One(node) => {
                    if let (Target::Master(sentinels), [tracked]) = (&*node.shared.target, tracked)
                        && sentinels.have_moved_from(&node.shared.settings, &tracked.opened.place.addr).await
                    {
                        return Err(other_masters());
                    }
                }
                Servers::Cluster(cluster) => {
                    // While no server reports the slots there are no replies either.
                    drop(cluster.refresh().await);
                    check_map(cluster, tracked)?;
                }
            }
        }
    }
}

/// Fails if a master of the cluster is not tracked. One too many does no harm.
fn check_map(cluster: &Cluster, tracked: &[Tracked]) -> Result<()> {
    let is_tracked = |addr| tracked.iter().any(|tracked| Some(&tracked.opened.place.addr) == addr);
    if cluster.masters().iter().all(|node| is_tracked(node.addr())) { Ok(()) } else { Err(other_masters()) }
}

#[cold]
fn other_masters() -> Error {
    Error::new(ErrorKind::Unavailable, "another Redis server has become a master")
}

impl Source for Masters {
    async fn follow(&self, teller: &Teller) -> Result<Infallible> {
        let pushed = Pushed::new(&self.layout);
        let tracked = self.track(&pushed).await?;
        teller.started(None);
        tokio::select! {
            error = pushed.tell_all(teller) => Err(error),
            ended = self.check(&tracked, &pushed, teller) => ended,
            ended = self.check_topology(&tracked) => ended,
        }
    }

    async fn since(&self, cursor: &Cursor) -> Result<Option<Vec<Change>>> {
        Ok(self.feed.since(cursor))
    }
}

impl Watch for Redis {
    fn watch(&self, options: WatchOptions) -> impl Stream<Item = Result<Event>> + Send {
        let server = Arc::downgrade(&self.server);
        self.feed.watch(Masters { server, layout: self.layout.clone(), feed: self.feed.clone() }, options)
    }
}
